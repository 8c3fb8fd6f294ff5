"""Requests and policies for Amazon SageMaker, as JSON: `python -m robosat_pink.sagemaker FOLDER` writes the files.

Hyperparameters come from the experiment file's keys, metrics from the table that prints them, so that a request cannot
name one that the program does not know. Nothing here calls AWS, and only `reference` imports this module. The Amazon
SageMaker API reference describes the requests: CreateTrainingJob and CreateAlgorithm.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from robosat_pink.config import Config
from robosat_pink.config.keys import Key, leaf_keys
from robosat_pink.training import metrics

IMAGE_BUCKET = "planet-snowcover-imagery"
MASK_BUCKET = "planet-snowcover-snow"
CONFIG_BUCKET = "planet-snowcover-config"
MODEL_BUCKET = "planet-snowcover-models"
EXPERIMENT = "tuolumne-1"  # a prefix in CONFIG_BUCKET that contains only this experiment's file

CHECKPOINTS = "/opt/ml/checkpoints"
TENSORBOARD = "/opt/ml/output/tensorboard"
VOLUME_GB = 150
MAX_RUNTIME_S = 25200
MAX_WAIT_S = 2 * MAX_RUNTIME_S  # for running plus waiting for spot capacity

# g5.xlarge includes a disk of 250 GB. g4dn.xlarge includes only 125 GB, and a tuning job refuses a larger volume.
INSTANCE_TYPE = "ml.g5.xlarge"
ONE_GPU_SIZES = ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")
INSTANCE_TYPES = (
    *(f"ml.{family}.{size}" for family in ("g4dn", "g5", "g6") for size in ONE_GPU_SIZES),
    *("ml.g4dn.12xlarge", "ml.g5.12xlarge", "ml.g5.48xlarge", "ml.g6.12xlarge", "ml.g6.48xlarge"),  # 4 and 8 GPUs
    *("ml.m5.xlarge", "ml.m5.2xlarge", "ml.m5.4xlarge", "ml.c5.2xlarge", "ml.c5.4xlarge", "ml.c5.9xlarge"),
)

INTEGER_LIMITS = (-(2**31), 2**31 - 1)
FLOAT_LIMITS = (-sys.float_info.max, sys.float_info.max)


@dataclass(frozen=True)
class Account:
    """The account and region of a job. The image's repository and the role are named after this package."""

    number: str
    region: str

    @property
    def image(self) -> str:
        return f"{self.number}.dkr.ecr.{self.region}.amazonaws.com/robosat_pink:{version('robosat_pink')}"

    @property
    def role(self) -> str:
        return f"arn:aws:iam::{self.number}:role/robosat_pink"

    def arn(self, service: str, resource: str) -> str:
        return f"arn:aws:{service}:{self.region}:{self.number}:{resource}"


EXAMPLE_ACCOUNT = Account("123456789012", "us-west-2")  # the example number of AWS's documentation


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="robosat_pink.sagemaker", description="Write requests and policies for Amazon SageMaker as JSON."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="made if missing")
    number, region = EXAMPLE_ACCOUNT.number, EXAMPLE_ACCOUNT.region
    parser.add_argument("--account", type=_account_number, default=number, help="12 digits (default: %(default)s)")
    parser.add_argument("--region", type=_region, default=region, help="of job and image (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        write_files(arguments.folder, Account(arguments.account, arguments.region))
    except OSError as error:
        parser.error(f"{error.filename} cannot be written: {error.strerror}")
    return 0


def write_files(folder: Path, account: Account) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents(account).items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")


def documents(account: Account) -> dict[str, dict[str, Any]]:
    """The content of each file, by its name."""
    return {
        "training-job.json": training_job(account),
        "training-job-spot.json": spot_training_job(account),
        "predict-job.json": predict_job(account),
        "evaluate-job.json": evaluate_job(account),
        "algorithm.json": algorithm(account),
        "iam-policy.json": iam_policy(account),
        "trust-policy.json": trust_policy(account),
    }


def training_job(account: Account) -> dict[str, Any]:
    """A CreateTrainingJob request. It sets no hyperparameters: the experiment file sets everything."""
    return {
        "TrainingJobName": f"robosat-pink-{EXPERIMENT}",
        "RoleArn": account.role,
        "AlgorithmSpecification": {
            "TrainingImage": account.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": metrics.definitions(),
        },
        "InputDataConfig": [
            {
                "ChannelName": "config",
                "InputMode": "File",
                "ContentType": "application/yaml",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": f"s3://{CONFIG_BUCKET}/{EXPERIMENT}/",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{MODEL_BUCKET}"},
        "ResourceConfig": {"InstanceType": INSTANCE_TYPE, "InstanceCount": 1, "VolumeSizeInGB": VOLUME_GB},
        "StoppingCondition": {"MaxRuntimeInSeconds": MAX_RUNTIME_S},
        "EnableNetworkIsolation": False,
        # For runtime.loggers; a job without event files copies nothing.
        "TensorBoardOutputConfig": {"LocalPath": TENSORBOARD, "S3OutputPath": f"s3://{MODEL_BUCKET}/tensorboard"},
    }


def spot_training_job(account: Account) -> dict[str, Any]:
    """The same on spot capacity. Resume points survive an interruption, and a later job with this S3Uri resumes."""
    return training_job(account) | {
        "TrainingJobName": f"robosat-pink-{EXPERIMENT}-spot",
        "StoppingCondition": {"MaxRuntimeInSeconds": MAX_RUNTIME_S, "MaxWaitTimeInSeconds": MAX_WAIT_S},
        "EnableManagedSpotTraining": True,
        "CheckpointConfig": {"S3Uri": f"s3://{MODEL_BUCKET}/checkpoints/{EXPERIMENT}/", "LocalPath": CHECKPOINTS},
    }


def predict_job(account: Account) -> dict[str, Any]:
    """A CreateTrainingJob request that runs `predict`, with the model of an earlier job as the channel `model`.

    Its experiment file, or a hyperparameter, sets predict.model to channel:model.
    """
    job = training_job(account)
    del job["TensorBoardOutputConfig"]
    config_channel = job["InputDataConfig"][0]
    specification = {
        name: value for name, value in job["AlgorithmSpecification"].items() if name != "MetricDefinitions"
    }
    return job | {
        "TrainingJobName": f"robosat-pink-{EXPERIMENT}-map",
        "AlgorithmSpecification": specification | {"ContainerArguments": ["predict"]},
        "HyperParameters": {"predict.model": "channel:model"},
        "InputDataConfig": [
            config_channel,
            {
                "ChannelName": "model",
                "InputMode": "File",
                "ContentType": "application/x-tar",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": f"s3://{MODEL_BUCKET}/robosat-pink-{EXPERIMENT}/output/model.tar.gz",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            },
        ],
    }


def evaluate_job(account: Account) -> dict[str, Any]:
    """The same for `evaluate`, which also needs masks, and prints metrics."""
    job = predict_job(account)
    specification = {"ContainerArguments": ["evaluate"], "MetricDefinitions": metrics.definitions_of(metrics.EVALUATED)}
    return job | {
        "TrainingJobName": f"robosat-pink-{EXPERIMENT}-evaluation",
        "AlgorithmSpecification": job["AlgorithmSpecification"] | specification,
    }


def algorithm(account: Account) -> dict[str, Any]:
    """A CreateAlgorithm request.

    It lists no FastFile mode: the service accepts that only in jobs that name the image and refuses it here, although
    the service's API model allows it (boto3 issue 4469).
    """
    tiles = {"IsRequired": False, "SupportedCompressionTypes": ["None"], "SupportedInputModes": ["File"]}
    return {
        "AlgorithmName": "robosat-pink",
        "AlgorithmDescription": "Semantic segmentation of slippy-map tiles, as one experiment file says.",
        "TrainingSpecification": {
            "TrainingImage": account.image,
            "SupportedTrainingInstanceTypes": list(INSTANCE_TYPES),
            "SupportsDistributedTraining": True,
            "TrainingChannels": [
                {
                    "Name": "config",
                    "Description": "Exactly one experiment file.",
                    "IsRequired": True,
                    "SupportedContentTypes": ["application/yaml", "application/toml", "application/json"],
                    "SupportedCompressionTypes": ["None"],
                    "SupportedInputModes": ["File"],
                },
                {
                    "Name": "model",
                    "Description": "An earlier job's model.tar.gz, for predict.model: channel:model.",
                    "SupportedContentTypes": ["application/x-tar"],
                    **tiles,
                },
                {
                    "Name": "imagery",
                    "Description": "Directories of image tiles, for dataset.image_bucket: channel:imagery.",
                    "SupportedContentTypes": ["image/tiff", "image/png", "image/jpeg", "image/webp"],
                    **tiles,
                },
                {
                    "Name": "mask",
                    "Description": "Directories of mask tiles, for dataset.mask_bucket: channel:mask.",
                    "SupportedContentTypes": ["image/tiff", "image/png"],
                    **tiles,
                },
            ],
            "SupportedHyperParameters": [hyperparameter(name, key) for name, key in hyperparameter_keys().items()],
            "MetricDefinitions": metrics.definitions(),
            "SupportedTuningJobObjectiveMetrics": [
                {"Type": "Minimize" if name == "loss" else "Maximize", "MetricName": f"val:{name}"}
                for name in metrics.NAMES
            ],
        },
    }


def hyperparameter_keys() -> dict[str, Key]:
    """The keys that are in no list, so that a hyperparameter can set each by its dotted name."""
    return {name: key for name, key in leaf_keys(Config) if "[]" not in name}


def hyperparameter(name: str, key: Key) -> dict[str, Any]:
    """A HyperParameterSpecification.

    It has no DefaultValue: clients send a default as if the user had set it, and it would override the experiment file.
    """
    kind, limits = _kind_and_range(key)
    fallback = "" if key.is_required else f", or else {json.dumps(key.default)}"
    accepts = f"Accepted: {key.accepts}. " if kind == "FreeText" else ""
    return {
        "Name": name,
        "Description": f"{accepts}Unless set: as in the experiment file{fallback}.",
        "Type": kind,
        **({"Range": {f"{kind}ParameterRangeSpecification": limits}} if limits else {}),
        "IsTunable": name.startswith("model.") and kind != "FreeText",
        "IsRequired": False,
    }


def _kind_and_range(key: Key) -> tuple[str, dict[str, Any] | None]:
    """A key's ParameterType and its range, with inclusive bounds as text. A key of numbers and words is FreeText."""
    first, rule = key.types[0], key.rule
    low, high = (rule.lowest, rule.highest) if rule else (-math.inf, math.inf)
    if rule and rule.names and get_origin(first) is not tuple:
        return "Categorical", {"Values": list(rule.names)}
    if len(key.types) > 1:
        return "FreeText", None
    if get_origin(first) is Literal:
        return "Categorical", {"Values": list(get_args(first))}
    if first is bool:
        return "Categorical", {"Values": ["true", "false"]}
    if first is int:
        low, high = max(low, INTEGER_LIMITS[0]), min(high, INTEGER_LIMITS[1])
        return "Integer", {"MinValue": str(low), "MaxValue": str(high)}
    if first is float:
        low, high = float(max(low, FLOAT_LIMITS[0])), float(min(high, FLOAT_LIMITS[1]))
        return "Continuous", {"MinValue": str(low), "MaxValue": str(high)}
    return "FreeText", None


def iam_policy(account: Account) -> dict[str, Any]:
    """The permissions of a job's role: read tiles and experiments, write models, pull the image, log and measure."""
    buckets = (IMAGE_BUCKET, MASK_BUCKET, CONFIG_BUCKET, MODEL_BUCKET)
    log_group = account.arn("logs", "log-group:/aws/sagemaker/TrainingJobs")
    return {
        "Version": "2012-10-17",
        "Statement": [
            _allow("ListBuckets", ["s3:ListBucket"], [f"arn:aws:s3:::{bucket}" for bucket in buckets]),
            _allow("ReadObjects", ["s3:GetObject"], [f"arn:aws:s3:::{bucket}/*" for bucket in buckets]),
            # The second is for a map that is sent in parts and then stopped.
            _allow("WriteModels", ["s3:PutObject", "s3:AbortMultipartUpload"], [f"arn:aws:s3:::{MODEL_BUCKET}/*"]),
            # SageMaker deletes in S3 what the program deletes in /opt/ml/checkpoints.
            _allow("PruneResumePoints", ["s3:DeleteObject"], [f"arn:aws:s3:::{MODEL_BUCKET}/checkpoints/*"]),
            _allow(
                "PullImage",
                ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                [account.arn("ecr", "repository/robosat_pink")],
            ),
            _allow("LogInToRegistry", ["ecr:GetAuthorizationToken"], ["*"]),
            _allow(
                "WriteLogs",
                ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                [log_group, f"{log_group}:*"],
            ),
            _allow("WriteMetrics", ["cloudwatch:PutMetricData"], ["*"])
            | {"Condition": {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}}},
        ],
    }


def trust_policy(account: Account) -> dict[str, Any]:
    """The policy that only SageMaker may assume the role, and only for this account's resources in this region."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "SageMakerOfThisAccount",
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
                "Condition": {"ArnLike": {"aws:SourceArn": account.arn("sagemaker", "*")}},
            }
        ],
    }


def _allow(name: str, actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources}


def _account_number(text: str) -> str:
    if not re.fullmatch("[0-9]{12}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted: 12 digits, as `aws sts get-caller-identity` tells")
    return text


def _region(text: str) -> str:
    """Accepts regions of the `aws` partition only: others (China, GovCloud) have other ARNs and host names."""
    if not re.fullmatch("(?!cn-)[a-z]{2}-[a-z]+-[0-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted: a region of the aws partition, such as us-west-2")
    return text


if __name__ == "__main__":
    sys.exit(main())
