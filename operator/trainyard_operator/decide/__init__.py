"""What the operator decides: pure functions over frozen data; no clock, no I/O, no Kopf.

In reading order: `model` (what is observed, and what a plan is), `parse` (views from Kubernetes dicts), `failure` (why an attempt
ended and what follows), `diagnosis` (why a pod does not start), `admission` (which waiting jobs start now), `scaling` (how many
instances), `lifecycle` (the state machine of a job: `decide_job`), `service` (`decide_service`).
"""
