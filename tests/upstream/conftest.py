"""Upstream's mixins use markers of their own, and every skip has to say why."""

from pathlib import Path

import pytest


# Markers of transformers' test suite.
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_expert_parallel_test",
    "is_fsdp_test",
    "is_pipeline_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by transformers' mixins")


def pytest_collection_modifyitems(items):
    for item in items:
        # Some of upstream's tests look for warnings themselves, which an error would keep from being recorded.
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default::FutureWarning"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped:").strip()
        if not reason:
            report.outcome, report.longrepr = "failed", "The test is skipped without a reason."
