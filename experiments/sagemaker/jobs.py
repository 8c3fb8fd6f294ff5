"""Jobs on Amazon SageMaker from Python, with version 3 of its SDK: `pip install sagemaker`, away from robosat_pink.

Trainings, a tuning job and a map as the requests beside this file say them, and trainings and a map in containers on
this machine. Copy what you need.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter, IntegerParameter
from sagemaker.core.resources import TrainingJob
from sagemaker.core.training.configs import (
    Channel,
    CheckpointConfig,
    Compute,
    DataSource,
    InputData,
    MetricDefinition,
    Networking,
    OutputDataConfig,
    S3DataSource,
    SourceCode,
    StoppingCondition,
    TensorBoardOutputConfig,
)
from sagemaker.train import ModelTrainer
from sagemaker.train.model_trainer import Mode
from sagemaker.train.tuner import HyperparameterTuner

SENT = {
    *("TrainingJobName", "RoleArn", "AlgorithmSpecification", "InputDataConfig", "OutputDataConfig", "ResourceConfig"),
    *("StoppingCondition", "EnableManagedSpotTraining", "CheckpointConfig", "EnableNetworkIsolation"),
    *("HyperParameters", "Environment", "TensorBoardOutputConfig"),
}
SENT_OF = {
    "AlgorithmSpecification": {"TrainingImage", "TrainingInputMode", "MetricDefinitions"},
    "ResourceConfig": {"InstanceType", "InstanceCount", "VolumeSizeInGB"},
    "StoppingCondition": {"MaxRuntimeInSeconds", "MaxWaitTimeInSeconds"},
    "OutputDataConfig": {"S3OutputPath"},
    "CheckpointConfig": {"S3Uri", "LocalPath"},
}
RANGES = {"Continuous": ContinuousParameter, "Integer": IntegerParameter}


def train(request: Path | str, hyperparameters: Mapping[str, Any] | None = None) -> TrainingJob:
    """Start a training. Its `wait(logs=True)` shows the log; then `model_artifacts.s3_model_artifacts` is the model."""
    started = trainer(request, hyperparameters)
    started.train(wait=False, logs=False)
    return started._latest_training_job  # the SDK has no public name for it


def trainer(request: Path | str, hyperparameters: Mapping[str, Any] | None = None) -> ModelTrainer:
    """A trainer that sends the request in a file, training-job.json or training-job-spot.json.

    Hyperparameters override keys of the experiment. The SDK appends the time to the job's name.
    """
    job = json.loads(Path(request).read_text())
    if unknown := job.keys() - SENT:
        raise ValueError(
            f"{request}: {', '.join(sorted(unknown))} would not be sent; accepted: {', '.join(sorted(SENT))}"
        )
    for section, accepted in SENT_OF.items():
        if unknown := job.get(section, {}).keys() - accepted:
            raise ValueError(
                f"{request}: {section}: {', '.join(sorted(unknown))} would not be sent; accepted: "
                f"{', '.join(sorted(accepted))}. boto3's create_training_job sends every request"
            )
    specification, resources, limits = (
        job[name] for name in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition")
    )
    checkpoints = job.get("CheckpointConfig")
    metrics = [MetricDefinition(name=each["Name"], regex=each["Regex"]) for each in specification["MetricDefinitions"]]
    made = ModelTrainer(
        training_image=specification["TrainingImage"],
        training_input_mode=specification["TrainingInputMode"],
        role=job["RoleArn"],
        base_job_name=job["TrainingJobName"],
        compute=Compute(
            instance_type=resources["InstanceType"],
            instance_count=resources["InstanceCount"],
            volume_size_in_gb=resources["VolumeSizeInGB"],  # 30 if left out
            enable_managed_spot_training=job.get("EnableManagedSpotTraining", False),
        ),
        stopping_condition=StoppingCondition(
            max_runtime_in_seconds=limits["MaxRuntimeInSeconds"],  # 3600 if left out: a longer training is stopped
            max_wait_time_in_seconds=limits.get("MaxWaitTimeInSeconds"),
        ),
        input_data_config=[channel(each) for each in job["InputDataConfig"]],
        output_data_config=OutputDataConfig(s3_output_path=job["OutputDataConfig"]["S3OutputPath"]),
        # Without an address, each job would have a prefix of its own, and none would resume from another.
        checkpoint_config=checkpoints
        and CheckpointConfig(s3_uri=checkpoints["S3Uri"], local_path=checkpoints["LocalPath"]),
        networking=Networking(enable_network_isolation=job["EnableNetworkIsolation"]),
        hyperparameters=job.get("HyperParameters", {}) | dict(hyperparameters or {}),
        environment=job.get("Environment", {}),
    ).with_metric_definitions(metrics)
    if events := job.get("TensorBoardOutputConfig"):
        made.with_tensorboard_output_config(
            TensorBoardOutputConfig(s3_output_path=events["S3OutputPath"], local_path=events["LocalPath"])
        )
    return made


def channel(fields: Mapping[str, Any]) -> Channel:
    """A channel of a request."""
    source = fields["DataSource"]["S3DataSource"]
    return Channel(
        channel_name=fields["ChannelName"],
        input_mode=fields["InputMode"],
        content_type=fields["ContentType"],
        data_source=DataSource(
            s3_data_source=S3DataSource(
                s3_data_type=source["S3DataType"],
                s3_uri=source["S3Uri"],
                s3_data_distribution_type=source["S3DataDistributionType"],
            )
        ),
    )


def tuner(
    request: Path | str,
    algorithm: Path | str,
    ranges: Mapping[str, Sequence[Any]],
    hyperparameters: Mapping[str, Any] | None = None,
    metric: str = "val:iou",
    **options: Any,
) -> HyperparameterTuner:
    """A tuner of trainings like that of the request; its `tune()` starts the tuning job.

    ranges: the two limits of a number, the values of what is no number. algorithm.json says what may be tuned, the
    metrics, and which way each is better. Options, such as max_jobs and max_parallel_jobs, are HyperparameterTuner's.
    """
    specification = json.loads(Path(algorithm).read_text())["TrainingSpecification"]
    kinds = {each["Name"]: each["Type"] for each in specification["SupportedHyperParameters"] if each["IsTunable"]}
    directions = {each["MetricName"]: each["Type"] for each in specification["SupportedTuningJobObjectiveMetrics"]}
    if unknown := ranges.keys() - kinds.keys():
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be tuned; {algorithm} accepts {', '.join(kinds)}")
    trainings = trainer(request, hyperparameters)
    if trainings.networking.enable_network_isolation:
        raise ValueError(f"{request}: EnableNetworkIsolation = true: the SDK's tuner leaves it out; tune without it")
    return HyperparameterTuner(
        trainings,
        base_tuning_job_name=trainings.base_job_name,  # else the image's, whose underscore no tuning job may have
        objective_metric_name=metric,
        objective_type=directions[metric],
        metric_definitions=specification["MetricDefinitions"],
        hyperparameter_ranges={
            name: RANGES[kinds[name]](*values) if kinds[name] in RANGES else CategoricalParameter(list(values))
            for name, values in ranges.items()
        },
        **options,
    )


def predict(request: Path | str, model: str) -> TrainingJob:
    """Start the map of predict-job.json by a model.tar.gz in S3.

    A ModelTrainer passes no arguments to the program of an image, so boto3 sends the request.
    """
    job = json.loads(Path(request).read_text())
    job["TrainingJobName"] += time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
    [source] = [each["DataSource"] for each in job["InputDataConfig"] if each["ChannelName"] == "model"]
    source["S3DataSource"]["S3Uri"] = model
    boto3.client("sagemaker").create_training_job(**job)
    return TrainingJob.get(job["TrainingJobName"])


def train_here(
    image: str,
    folder: Path | str,
    channels: Mapping[str, Path | str],
    hosts: int = 1,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Path:
    """Train in containers on this machine, one a host. Returns the folder of the results: model/ and output/data/.

    channels: a folder for each. An interrupted training starts over, since the SDK mounts no folder of checkpoints.
    """
    return _run_here(image, folder, channels, hosts=hosts, hyperparameters=dict(hyperparameters or {}))


def predict_here(image: str, folder: Path | str, channels: Mapping[str, Path | str], *overrides: str) -> Path:
    """Make the map in a container on this machine. Overrides: KEY=VALUE, as on the command line.

    They cannot be hyperparameters: beside a command, the SDK exports these to a shell, which refuses dotted names.
    """
    command = SourceCode(command="/opt/program/start.sh predict", args=list(overrides))
    return _run_here(image, folder, channels, source_code=command)


def _run_here(
    image: str, folder: Path | str, channels: Mapping[str, Path | str], hosts: int = 1, **options: Any
) -> Path:
    """The folder must be new: at the end the SDK removes `input` and `shared` from it, whoever made them."""
    folder = Path(folder).resolve()
    folder.mkdir(parents=True)
    ModelTrainer(
        training_mode=Mode.LOCAL_CONTAINER,
        training_image=image,
        compute=Compute(instance_type="local_cpu", instance_count=hosts),  # or local_gpu
        input_data_config=[InputData(channel_name=name, data_source=str(path)) for name, path in channels.items()],
        local_container_root=str(folder),
        **options,
    ).train()
    return folder / "artifacts"
