import os
import signal
import subprocess
import sys
import threading

import pytest

from vitreous.stopping import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_the_first_signal_is_a_request_and_the_handlers_come_back(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert stop.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_leaves_at_once():
    program = (
        "import os, signal, time\n"
        "from vitreous.stopping import StopRequest\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "still here\n"


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGINT)

    def enter():
        with StopRequest() as stop:
            assert stop.signal is None

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
