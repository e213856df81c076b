"""Reports that must not be believed, of every kind that a token and a body can be false in."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

Object = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """A running attempt, and the tokens that its pod has: for the intake, and for the API server."""

    namespace: str
    job: str
    uid: str
    pod_uid: str
    token: str
    other_token: str

    def report(self, sequence: int) -> Object:
        """What a trainer tells every second, as large as it is in the middle of a training."""
        step = sequence % 3000
        scores = {"loss": 1.23456, "boxLoss": 0.71, "clsLoss": 0.42, "learningRate": 0.001, "mAP50": 0.8713}
        return {
            "job": self.job,
            "namespace": self.namespace,
            "uid": self.uid,
            "run": 0,
            "attempt": 1,
            "sequence": sequence,
            "phase": "Training",
            "percent": step // 30,
            "step": step,
            "steps": 3000,
            "epoch": step // 100,
            "epochs": 30,
            "stepsPerEpoch": 100,
            "batchSize": 16,
            "imagesPerSecond": 21.5,
            "etaSeconds": 3000 - step,
            "trainingSeconds": step,
            "checkpointStep": step - step % 100,
            "metrics": {"latest": scores, "best": scores},
        }


KINDS = (
    "no token",
    "no token of anybody",
    "a key of one's own",
    "no signature",
    "other claims under a good signature",
    "another audience",
    "another pod",
    "another job's uid",
    "another attempt",
    "a namespace of others",
)


def forge(kind: str, mine: Attempt, other: Attempt, sequence: int) -> tuple[str | None, Object]:
    """Token and body of a report on `other`, by one who has what `mine` has; a mark in the body shows who believed it."""
    body = other.report(sequence) | {"message": "forged"}
    match kind:
        case "no token":
            return None, body
        case "no token of anybody":
            return "a.b.c", body
        case "a key of one's own":
            headers = {"kid": jwt.get_unverified_header(other.token)["kid"]}
            return jwt.encode(claims(other.token), own_key(), algorithm="RS256", headers=headers), body
        case "no signature":
            return jwt.encode(claims(other.token), "", algorithm="none"), body
        case "other claims under a good signature":
            head, _, signature = mine.token.split(".")
            return ".".join([head, encoded(claims(other.token)), signature]), body
        case "another audience":
            return other.other_token, body
        case "another pod":
            return mine.token, body
        case "another job's uid":
            return mine.token, mine.report(sequence) | {"uid": other.uid, "message": "forged"}
        case "another attempt":
            return other.token, body | {"attempt": 2}
        case "a namespace of others":
            return mine.token, body | {"namespace": "kube-system"}
    raise ValueError(f"there is no forgery {kind!r}")


def claims(token: str) -> Object:
    return jwt.decode(token, options={"verify_signature": False})


def encoded(content: Object) -> str:
    lasting = content | {"exp": int(time.time()) + 3600}
    return base64.urlsafe_b64encode(json.dumps(lasting).encode()).rstrip(b"=").decode()


@cache
def own_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
