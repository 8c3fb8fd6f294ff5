"""The SageMaker Python SDK, version 3: its ModelTrainer drives the image, and sends the requests of the repository."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container.clients import python_with, run_client
from container.engine import ROOT, SMOKE, docker
from robosat_pink.sample import write_folder

pytestmark = pytest.mark.docker  # a test of the requests needs no engine, but the same environment, which takes long

# sagemaker 3.27 takes 1 GB, and minutes of a CPU to install, most of it for serving and MLflow. These packages are what
# its trainers and tuners import.
SDK = ("sagemaker-train==1.27.0", "sagemaker-core==2.27.0")
IMPORTED = (
    *("attrs", "boto3>=1.43.90,<2", "cloudpickle", "graphene<4", "importlib-metadata<7", "jsonschema<5", "omegaconf"),
    *(
        "packaging",
        "pandas",
        "platformdirs<5",
        "pydantic<3",
        "pytz",
        "PyYAML<7",
        "requests<3",
        "rich<15",
        "scipy",
        "six",
    ),
)
JOBS = ROOT / "experiments/sagemaker"
HYPERPARAMETERS = {
    "model.epochs": 1,
    "model.name": "albunet",
    "model.encoder": "resnet18",
    "model.ema": None,
    "model.loss": {"lovasz": 0.5, "cross_entropy": 1},
}
LOCAL = """
import json, shutil, sys
from pathlib import Path
folder, image, data, root, hyperparameters = sys.argv[1:]
sys.path.insert(0, folder)
import jobs
channels = {name: f"{data}/{name}" for name in ("config", "imagery", "mask")}
for hosts in (1, 2):
    trained = jobs.train_here(image, f"{root}/hosts-{hosts}", channels, hosts, json.loads(hyperparameters))
config = Path(root, "config")
config.mkdir()
shutil.copy(trained / "model/config.yml", config)
channels = {"config": config, "imagery": f"{data}/imagery", "model": trained / "model"}
jobs.predict_here(image, f"{root}/map", channels, "predict.model=channel:model")
"""


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(tmp_path_factory.mktemp("sdk"), ("--no-deps", *SDK), IMPORTED)


@pytest.fixture(scope="module")
def recorded(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each job of jobs.py sends to AWS."""
    written = tmp_path_factory.mktemp("recorded") / "requests.json"
    ran = run_client(sdk, Path(__file__).with_name("recorded_jobs.py"), JOBS, written)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(written.read_text())


@pytest.fixture(scope="module")
def local(image: str, sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder in which trainings on one and on two hosts and a map have ended, and their log."""
    folder = tmp_path_factory.mktemp("local")
    write_folder(folder / "job", SMOKE, tiles=2, size=64)
    root = folder / "root"
    ran = run_client(sdk, "-c", LOCAL, JOBS, image, folder / "job/input/data", root, json.dumps(HYPERPARAMETERS))
    left = docker("ps", "--all", "--quiet", "--filter", f"ancestor={image}", "--filter", "name=_algo-").stdout
    docker("rm", *left.split())  # what has ended; compose leaves it
    assert ran.returncode == 0, ran.stdout + ran.stderr
    yield root, ran.stdout + ran.stderr
    shutil.rmtree(folder)


def document(name: str) -> dict[str, Any]:
    return json.loads((JOBS / name).read_text())


def output(request: dict[str, Any]) -> dict[str, str]:
    """Where a request puts the results, with the compression that the SDK writes out. It is the service's default."""
    return request["OutputDataConfig"] | {"CompressionType": "GZIP"}


@pytest.mark.parametrize("name", ["training-job.json", "training-job-spot.json"])
def test_trainer_sends_the_request_of_the_file(recorded: dict[str, Any], name: str) -> None:
    sent, request = recorded[name], document(name)
    assert re.fullmatch(rf"{request['TrainingJobName']}-\d{{14}}", sent.pop("TrainingJobName"))
    hyperparameters = {"model.epochs": "20", "model.loss": '{"dice": 0.5, "focal": 1}', "model.ema": "null"}
    assert sent.pop("HyperParameters") == hyperparameters
    del request["TrainingJobName"]
    assert sent == {"EnableManagedSpotTraining": False} | request | {"OutputDataConfig": output(request)}


def test_map_is_requested_with_the_model_of_a_training(recorded: dict[str, Any]) -> None:
    sent, request = recorded["predict-job.json"], document("predict-job.json")
    model = request["InputDataConfig"][1]["DataSource"]["S3DataSource"]
    model["S3Uri"] = "s3://models/tuolumne-1-20261101/output/model.tar.gz"
    name = sent.pop("TrainingJobName")
    assert re.fullmatch(rf"{request.pop('TrainingJobName')}-\d{{8}}-\d{{6}}", name)
    assert sent == request


def test_tuner_sends_what_the_algorithm_lists_with_the_trainings_of_the_request(recorded: dict[str, Any]) -> None:
    tuning, request = recorded["tuning"]["HyperParameterTuningJobConfig"], document("training-job.json")
    algorithm = document("algorithm.json")["TrainingSpecification"]
    assert tuning["HyperParameterTuningJobObjective"] == {"Type": "Maximize", "MetricName": "val:iou"}
    assert tuning["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 8, "MaxParallelTrainingJobs": 2}
    assert tuning["ParameterRanges"] == {
        "ContinuousParameterRanges": [
            {"Name": "model.lr", "MinValue": "1e-05", "MaxValue": "0.001", "ScalingType": "Auto"}
        ],
        "IntegerParameterRanges": [
            {"Name": "model.batch_size", "MinValue": "2", "MaxValue": "8", "ScalingType": "Auto"}
        ],
        "CategoricalParameterRanges": [{"Name": "model.loss", "Values": ["lovasz", "dice"]}],
    }
    training = recorded["tuning"]["TrainingJobDefinition"]
    assert training["StaticHyperParameters"] == {
        "model.epochs": "20", "model.ema": "None", "channels.0.bands": "[1, 2]",
        "dataset.split": "{'by': 'block'}",  # Python's own form; config/overrides.py reads it
    }
    specification = training["AlgorithmSpecification"]
    assert specification["MetricDefinitions"] == algorithm["MetricDefinitions"]
    assert specification["TrainingImage"] == algorithm["TrainingImage"]
    assert training["OutputDataConfig"] == output(request)
    for field in ("RoleArn", "InputDataConfig", "ResourceConfig", "StoppingCondition"):
        assert training[field] == request[field]


def test_tuning_job_has_a_name_that_the_service_accepts(recorded: dict[str, Any]) -> None:
    assert re.fullmatch(r"robosat-pink-[a-z]+-\d{6}-\d{4}", name := recorded["tuning"]["HyperParameterTuningJobName"])
    assert len(name) <= 32


def test_hyperparameter_that_cannot_be_tuned_is_refused_in_words(recorded: dict[str, Any]) -> None:
    assert re.match(r"model.encoder cannot be tuned; .*/algorithm.json accepts .*, model.lr, ", recorded["not tunable"])


def test_sdk_refuses_the_role_of_the_policy_unless_told_not_to_look(recorded: dict[str, Any]) -> None:
    """The policy allows what a job does. The SDK asks for the permissions of a job in a VPC as well, and no others."""
    [missing] = re.findall("Missing permissions: (.*)", recorded["role"])
    assert {action.split(":")[0] for action in missing.split(", ")} == {"ec2"}


def test_defaults_of_the_sdk_are_too_small_for_a_training(recorded: dict[str, Any]) -> None:
    assert recorded["bare"]["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    assert recorded["bare"]["ResourceConfig"]["VolumeSizeInGB"] == 30
    assert recorded["bare"]["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"  # without a GPU


@pytest.mark.parametrize("hosts", [1, 2])
def test_training_in_local_mode_leaves_everything(local: tuple[Path, str], hosts: int) -> None:
    root, log = local
    found = {path.name for path in (root / f"hosts-{hosts}/artifacts/model").iterdir()}
    assert {"checkpoint-00001-of-00001.pth", "best.pth", "train_ids.txt", "test_ids.txt", "MODEL_CARD.md"} <= found
    assert (root / f"hosts-{hosts}/artifacts/output/data/report.html").exists()
    assert log.count("phase=val epoch=1 epochs=1 val_loss=") == 2
    assert f"host algo-1 of {', '.join(f'algo-{number + 1}' for number in range(hosts))}; checkpoints: None" in log


def test_sdk_removes_the_input_of_the_folder_of_a_local_job(local: tuple[Path, str]) -> None:
    root, _ = local
    assert {path.name for path in (root / "hosts-1").iterdir()} == {
        *("artifacts", "compressed_artifacts", "docker-compose.yaml", "model", "output")
    }


def test_map_in_local_mode_is_made_with_the_model_of_a_training(local: tuple[Path, str]) -> None:
    root, _ = local
    found = root / "map/artifacts/output/data"
    assert (found / "map.html").exists()
    assert (found / "predictions/20180528_sierra.tif").exists()
