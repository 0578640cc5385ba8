import pytest
from handling import Hands

from leasemesh import RetryRule, Workflow


@pytest.fixture
def mail():
    return Workflow("mail")


@pytest.fixture
def inbox(mail):
    return mail.topic("inbox")


@pytest.fixture
def sent(mail):
    return mail.topic("sent")


@pytest.fixture
def quick():
    """Retries without delay that a test would notice."""
    return RetryRule(first_ms=1, most_ms=2)


@pytest.fixture
def hands():
    """Drive single runs by hand, step by step: `hands(node)`."""
    return Hands
