from popart.testing.wire.test_sign_in import *  # noqa: F403
