from checked_mail import break_backend, on_new_connection

from popart.testing.check import check_handler


def test_handler() -> None:
    report = check_handler(
        on_new_connection,
        user="alice",
        password="secret",
        delete=True,
        break_backend=break_backend,
    )
    assert report.findings == []
