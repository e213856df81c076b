"""A trainer that trains nothing: it keeps the contract of RunSpec, Report and ExitCode, quickly and without torch.

Python imports a module of this name at its start, so that PYTHONPATH alone makes any Python image this trainer. What it does
is told by FAKE_TRAINER: a JSON list with an object for each attempt, the last one for all that follow:
`steps` and `pause` (seconds per step), `exit` with `reason` and `message`, `silent` (no report after this step), `hang`
(never ends by itself), `deaf` (ignores SIGTERM), `kill` (a child, by signal 9), `version` (with exit 78), `obeys` (publishes
when the answer to a report asks it to finish).
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

STANDBY = "TRAINYARD_STANDBY"


class Stop(BaseException):
    """SIGTERM came."""


def main() -> int:
    spec = wait_for_work() if STANDBY in os.environ else json.loads(Path(os.environ["TRAINYARD_RUN_SPEC"]).read_text())
    plans = json.loads(os.environ.get("FAKE_TRAINER", "[{}]"))
    plan = plans[min(spec.get("attempt", 1), len(plans)) - 1]
    if rank := int(os.environ.get("JOB_COMPLETION_INDEX", "0")):
        return follow(spec, plan, rank)
    trainer = Trainer(spec, plan)

    def stop(*_: object) -> None:
        raise Stop

    signal.signal(signal.SIGTERM, signal.SIG_IGN if plan.get("deaf") else stop)
    try:
        return trainer.train()
    except Stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        trainer.part()
        return trainer.end(75, "Interrupted", "SIGTERM: the checkpoint is saved")


def wait_for_work() -> dict:
    """As a warm instance does it: says that it is warm, then asks the intake until it has a RunSpec."""
    told = json.loads(Path(os.environ[STANDBY]).read_text())
    intake = told["intake"]
    Path("/tmp/trainyard-warm").touch()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        token = Path(intake["tokenPath"]).read_text().strip()
        url = intake["url"].replace("/v1/reports", "/v1/standby")
        request = urllib.request.Request(url, b"{}", {"Authorization": f"Bearer {token}"})
        try:
            with opener(intake).open(request, timeout=40) as answer:
                if answer.status == 200:
                    return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            print(
                json.dumps({"event": "no work", "status": error.code, "answer": error.read(500).decode()}), flush=True
            )
            if error.code in (401, 403, 410):
                os._exit(0 if error.code == 410 else 1)
            time.sleep(0.2)
        except OSError as error:
            print(json.dumps({"event": "no answer", "error": str(error)}), flush=True)
            time.sleep(0.5)


def follow(spec: dict, plan: dict, rank: int) -> int:
    """A node that is not the first: it meets the first one and stays for as long as that trains."""
    meeting = spec["rendezvous"]["host"], spec["rendezvous"]["port"]
    while True:
        try:
            with socket.create_connection(meeting, timeout=2) as first:
                print(json.dumps({"event": "met", "rank": rank, "host": meeting[0]}), flush=True)
                if plan.get("rank") == rank:
                    time.sleep(0.5)
                    return plan["code"]
                first.settimeout(None)
                first.recv(1)
                return 0
        except OSError as error:
            print(json.dumps({"event": "nobody there yet", "error": str(error)}), flush=True)
            time.sleep(0.2)


def opener(intake: dict) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cadata=intake["caPem"]) if intake.get("caPem") else None
    handlers = [urllib.request.ProxyHandler({})] + ([urllib.request.HTTPSHandler(context=context)] if context else [])
    return urllib.request.build_opener(*handlers)


class Trainer:
    def __init__(self, spec: dict, plan: dict) -> None:
        self.spec, self.plan = spec, plan
        self.sequence = 0
        self.step = 0
        self.steps = plan.get("steps", 3)
        self.began = time.monotonic()
        self.asked_to_finish = False
        self.opener = opener(spec["intake"])

    def train(self) -> int:
        plan = self.plan
        print(
            json.dumps({"event": "start", "attempt": self.spec["attempt"], "resumeFrom": self.spec.get("resumeFrom")})
        )
        self.report("Fetching", must=True)
        self.meet()
        for _ in range(self.steps):
            time.sleep(plan.get("pause", 0.05))
            self.step += 1
            self.report("Training", must=self.step == 1)
            if plan.get("obeys") and self.asked_to_finish:
                return self.end(0, "FinishedEarly", "finished as asked")
        while plan.get("hang"):
            time.sleep(1)
            self.report("Training")
        if plan.get("kill"):
            # The first process of a container cannot kill itself so: it is a child that dies, as a rank of a training does.
            child = subprocess.Popen(["sleep", "60"])
            child.kill()
            return 128 - child.wait()
        if code := plan.get("exit", 0):
            return self.end(code, plan.get("reason", "Error"), plan.get("message", "told to fail"))
        return self.end(0, "Completed", "trained")

    def meet(self) -> None:
        """Wait for the other nodes; their connections are closed at the end."""
        self.others: list[socket.socket] = []
        if self.spec.get("nodes", 1) > 1:
            address = socket.gethostbyname(self.spec["rendezvous"]["host"])
            with socket.create_server((address, self.spec["rendezvous"]["port"])) as server:
                self.others = [server.accept()[0] for _ in range(self.spec["nodes"] - 1)]

    def part(self) -> None:
        for other in getattr(self, "others", ()):
            other.close()

    def end(self, code: int, reason: str, message: str) -> int:
        result = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "step": self.step,
            "steps": self.steps,
            "checkpointStep": self.step or None,
            "trainingSeconds": round(time.monotonic() - self.began),
            "version": self.plan.get("version"),
        }
        if code == 0:
            run = f"{self.spec['outputURI']}/{self.spec['model']}/v{self.spec.get('version', 1)}"
            result |= {"manifestURI": f"{run}/manifest.json", "metrics": {"mAP50": 0.9}, "labels": ["circle", "square"]}
            result |= {"artifacts": [{"name": "model.onnx", "uri": f"{run}/a1/model.onnx", "size": 1}]}
        result = {key: value for key, value in result.items() if value is not None}
        self.part()
        if self.plan.get("silent") is None:
            self.report("Done", must=True, result=result)
        Path("/dev/termination-log").write_text(json.dumps(result))
        return code

    def report(self, phase: str, *, must: bool = False, **more: object) -> None:
        silent = self.plan.get("silent")
        if silent is not None and self.step >= silent:
            return
        self.sequence += 1
        body = {name: self.spec[name] for name in ("job", "namespace", "uid", "attempt")}
        body |= {"run": self.spec.get("run", 0), "sequence": self.sequence, "phase": phase}
        body |= {"step": self.step, "steps": self.steps, "percent": 100 * self.step // max(1, self.steps)}
        body |= {"trainingSeconds": round(time.monotonic() - self.began), "checkpointStep": self.step}
        body |= {"metrics": {"latest": {"loss": 1 / (1 + self.step)}, "best": {"mAP50": 0.5}}} | more
        deadline = time.monotonic() + (20 if must else 0)
        while True:
            status, wait = self.post(body)
            if status == 200 or (400 <= status < 500 and status != 429):
                return
            if time.monotonic() + wait >= deadline:
                return
            time.sleep(wait)

    def post(self, body: dict) -> tuple[int, float]:
        token = Path(self.spec["intake"]["tokenPath"]).read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.spec["intake"]["url"], json.dumps(body).encode(), headers)
        try:
            with self.opener.open(request, timeout=5) as answer:
                self.asked_to_finish = json.loads(answer.read()).get("end") == "Finish"
                return answer.status, 0.0
        except urllib.error.HTTPError as error:
            print(
                json.dumps({"event": "refused", "status": error.code, "answer": error.read(500).decode()}), flush=True
            )
            return error.code, 1.0
        except OSError as error:
            print(json.dumps({"event": "no answer", "error": str(error)}), flush=True)
            return 0, 1.0


if "TRAINYARD_RUN_SPEC" in os.environ or STANDBY in os.environ:
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
