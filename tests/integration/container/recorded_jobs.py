"""What the jobs of experiments/sagemaker/jobs.py send to AWS, as JSON. Runs in the environment of the SDK, version 3.

Arguments: the folder of jobs.py and its requests, the file to write. Nothing is sent: this answers each call itself.
"""

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.client
from botocore.validate import ParamValidator

folder, written = map(Path, sys.argv[1:])
policy = json.loads((folder / "iam-policy.json").read_text())
allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
calls: list[tuple[str, dict[str, Any]]] = []


def answer(client: Any, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    """Records a call of any client. Its request has the form that AWS's own model of the service demands."""
    shape = client.meta.service_model.operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    calls.append((operation, request))
    if operation == "SimulatePrincipalPolicy":
        decisions = {action: "allowed" if action in allowed else "implicitDeny" for action in request["ActionNames"]}
        results = [{"EvalActionName": action, "EvalDecision": decision} for action, decision in decisions.items()]
        return {"EvaluationResults": results, "IsTruncated": False}
    if operation.startswith("Describe"):
        return request | {
            "TrainingJobArn": "arn:aws:sagemaker:us-west-2:123456789012:training-job/any",
            "TrainingJobStatus": "InProgress",
            "SecondaryStatus": "Starting",
            "HyperParameterTuningJobArn": "arn:aws:sagemaker:us-west-2:123456789012:hyper-parameter-tuning-job/any",
            "HyperParameterTuningJobStatus": "InProgress",
            "CreationTime": datetime.now(),
        }
    return {}


def sent() -> dict[str, Any]:
    """The newest request that creates something."""
    return [request for operation, request in calls if operation.startswith("Create")][-1]


botocore.client.BaseClient._make_api_call = answer
sys.path.insert(0, str(folder))
import jobs  # noqa: E402
from sagemaker.core.helper.iam_role_resolver import RoleValidationError  # noqa: E402

recorded: dict[str, Any] = {}
try:
    jobs.train(folder / "training-job.json")
except RoleValidationError as error:
    recorded["role"] = str(error)
os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"

for name in ("training-job.json", "training-job-spot.json"):
    job = jobs.train(folder / name, {"model.epochs": 20, "model.loss": {"dice": 0.5, "focal": 1}, "model.ema": None})
    assert job.training_job_name == sent()["TrainingJobName"]
    recorded[name] = sent()

job = jobs.predict(folder / "predict-job.json", "s3://models/tuolumne-1-20261101/output/model.tar.gz")
assert job.training_job_name == sent()["TrainingJobName"]
recorded["predict-job.json"] = sent()

ranges = {"model.lr": (1e-5, 1e-3), "model.batch_size": (2, 8), "model.loss": ["lovasz", "dice"]}
arguments = (folder / "training-job.json", folder / "algorithm.json")
static = {"model.epochs": 20, "model.ema": None, "channels.0.bands": [1, 2], "dataset.split": {"by": "block"}}
tuner = jobs.tuner(*arguments, ranges, static, max_jobs=8, max_parallel_jobs=2)
tuner.tune(wait=False)
recorded["tuning"] = sent()
try:
    jobs.tuner(*arguments, {"model.encoder": ["resnet18"]})
except ValueError as error:
    recorded["not tunable"] = str(error)

bare = jobs.ModelTrainer(
    training_image="robosat_pink",
    role="arn:aws:iam::123456789012:role/robosat_pink",
    output_data_config=jobs.OutputDataConfig(s3_output_path="s3://models"),
)
bare.train(wait=False, logs=False)
recorded["bare"] = sent()
written.write_text(json.dumps(recorded))
