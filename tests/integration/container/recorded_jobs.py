"""What the jobs of experiments/sagemaker/jobs.py send to AWS, as JSON. Runs in the environment of the SDK, version 3.

Arguments: the file to write, and the code of the page that starts such jobs. The current folder is that of jobs.py and
its requests. Nothing is sent: this answers each call itself.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.client
from botocore.validate import ParamValidator

MODEL = "s3://models/tuolumne-1-20261101/output/model.tar.gz"
written, page = sys.argv[1:]
policy = json.loads(Path("iam-policy.json").read_text())
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
    return ended(request) if operation.endswith("Job") else {"logStreams": []}


def ended(request: dict[str, Any]) -> dict[str, Any]:
    """What the service says of a job that has ended."""
    arn = "arn:aws:sagemaker:us-west-2:123456789012"
    return request | {
        "CreationTime": datetime.now(),
        "HyperParameterTuningJobArn": f"{arn}:hyper-parameter-tuning-job/any",
        "HyperParameterTuningJobStatus": "Completed",
        "BestTrainingJob": {
            "TrainingJobName": "best",
            "TrainingJobArn": f"{arn}:training-job/best",
            "CreationTime": datetime.now(),
            "TrainingJobStatus": "Completed",
            "TunedHyperParameters": {"model.lr": "0.0001"},
        },
        "TrainingJobArn": f"{arn}:training-job/any",
        "TrainingJobStatus": "Completed",
        "SecondaryStatus": "Completed",
        "ModelArtifacts": {"S3ModelArtifacts": MODEL},
    }


def sent() -> list[dict[str, Any]]:
    """The requests that create something, in their order."""
    return [request for operation, request in calls if operation.startswith("Create")]


def refusal(start: Callable[..., Any], *arguments: Any) -> str:
    """Why a job is not started."""
    try:
        start(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it is started"


def changed(name: str, **fields: Any) -> Path:
    """training-job.json with other fields, as a file of its own."""
    path = Path(written).with_name(name)
    path.write_text(json.dumps(json.loads(Path("training-job.json").read_text()) | fields))
    return path


botocore.client.BaseClient._make_api_call = answer
sys.path.insert(0, ".")
import jobs  # noqa: E402

recorded: dict[str, Any] = {"role": refusal(jobs.train, "training-job.json")}
os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
assert not sent()

exec(page)
recorded["page"] = sent()

values = {"model.epochs": 20, "model.loss": {"dice": 0.5, "focal": 1}, "model.ema": None}
jobs.train("training-job-spot.json", values)
recorded["spot"] = sent()[-1]

jobs.tuner("training-job.json", "algorithm.json", {"model.lr": (1e-5, 1e-3)}, values).tune(wait=False)
recorded["static"] = sent()[-1]["TrainingJobDefinition"]["StaticHyperParameters"]
recorded["not tunable"] = refusal(jobs.tuner, "training-job.json", "algorithm.json", {"model.encoder": ["resnet18"]})

isolated = changed(
    "isolated.json",
    EnableNetworkIsolation=True,
    Environment={"AWS_NO_SIGN_REQUEST": "YES"},
    HyperParameters={"model.epochs": "5", "model.lr": "0.001"},
)
recorded["isolated"] = refusal(jobs.tuner, isolated, "algorithm.json", {"model.lr": (1e-5, 1e-3)})
jobs.train(isolated, {"model.epochs": 20})
recorded["isolated job"] = sent()[-1]
recorded["vpc"] = refusal(jobs.train, changed("with_a_vpc.json", VpcConfig={}))

jobs.ModelTrainer(
    training_image="robosat_pink",
    role="arn:aws:iam::123456789012:role/robosat_pink",
    output_data_config=jobs.OutputDataConfig(s3_output_path="s3://models"),
).train(wait=False, logs=False)
recorded["bare"] = sent()[-1]
Path(written).write_text(json.dumps(recorded))
