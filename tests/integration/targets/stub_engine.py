"""A stand-in for an engine server with the habits of real ones that matter to a supervisor. Standard library only: it starts fast.

It leaves children: one in a session of its own, without our environment, that ignores SIGTERM (found by its log), one that writes
elsewhere but has the environment. Some values of --max-num-seqs are special, so that a changed flag can break the start:
13 refuses to boot, 14 never serves, 15 serves /health but answers no completion, 16 takes a completion and never answers it.
"""

import argparse
import http.server
import os
import signal
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--max-num-seqs", type=int, default=1)
parser.add_argument("--children", action="store_true")
parser.add_argument("--start-seconds", type=float, default=0.0)
options = parser.parse_args()

IDLE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"

print(f"starting with max_num_seqs={options.max_num_seqs} and COLOUR={os.environ.get('COLOUR')}", flush=True)
if options.max_num_seqs == 13:
    print("ValueError: max_num_seqs 13 is unlucky", file=sys.stderr)
    sys.exit(3)
if options.children:
    subprocess.Popen([sys.executable, "-S", "-c", IDLE], start_new_session=True, env={"STUB": "worker"})
    subprocess.Popen([sys.executable, "-S", "-c", IDLE], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(options.start_seconds)
if options.max_num_seqs == 14:
    signal.pause()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status: int) -> None:
        body = b'{"data": [{"id": "stub"}]}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(200)

    def do_POST(self) -> None:
        if options.max_num_seqs == 16:
            time.sleep(300)
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200 if b'"model": "stub"' in asked.replace(b'":"', b'": "') and options.max_num_seqs != 15 else 503)

    def log_message(self, *arguments: object) -> None:
        pass


http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
