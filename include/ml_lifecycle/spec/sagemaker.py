"""What ``model.yaml`` says of Amazon SageMaker."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from ml_lifecycle.spec.types import InstanceType, PositiveDuration, RoleArn, Strict, Text


class SageMaker(Strict):
    """An Amazon SageMaker endpoint for the model, with a production variant for each version.

    :param role: what containers run as; it may read and write the environment's lake, and pull the image
    :param image: the project's server image in Amazon ECR
    :param instances: the champion's
    :param challenger_instances: each other version's: a canary's, a shadow's or a standby's
    :param timeout: how long a change of the endpoint may take; SageMaker starts machines for each
    """

    role: RoleArn
    image: Text
    instance_type: InstanceType
    instances: int = Field(default=1, ge=1)
    challenger_instances: int = Field(default=1, ge=1)
    timeout: PositiveDuration = timedelta(minutes=30)
