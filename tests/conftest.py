"""Shared by all tests: one thread, and a report of versions."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def pytest_report_header():
    return f"torch {torch.__version__}"
