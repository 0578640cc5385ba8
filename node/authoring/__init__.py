"""What the author of handlers writes with: workflows, topics, effects, the run, retries and schedules.

How a run is carried out belongs in `execution`.
"""
