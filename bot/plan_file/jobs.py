"""Where heavy steps run as Kubernetes Jobs."""

from datetime import timedelta
from typing import Annotated

from actions.ports import JobKind
from bot.plan_file.values import Bytes, Duration, KubernetesName, Name, Part, Shape, Text

Folder = Annotated[str, Shape(r"(?:/[^/\s]+)+", "give an absolute folder without `/` at its end")]
Cpu = Annotated[str, Shape(r"[1-9][0-9]*m?", "write processors such as `2`, or thousandths such as 500m")]


class JobClaim(Part):
    """A PersistentVolumeClaim that jobs mount: for their spool and the local copies."""

    name: KubernetesName
    """Name of the claim in the jobs' namespace."""
    path: Folder
    """Where jobs see it; their own folder is /var/lib/drbot."""


class JobSecret(Part):
    """A Secret with values that references of this plan name."""

    name: KubernetesName
    """Name of the Secret in the jobs' namespace."""
    path: Folder | None = None
    """Folder its keys are files of, for `file:` references; empty: environment variables, for `env:`."""
    kinds: tuple[JobKind, ...] = ()
    """For dump, load, verify, upload, adopt, base, base_verify, base_copy, scratch, prove, find; empty: all."""


class Jobs(Part):
    """Heavy steps as Jobs of a cluster; used by workers that run with DRBOT_EXECUTOR=kubernetes."""

    cluster: Name
    """The cluster they run in."""
    namespace: KubernetesName
    """Their namespace, which should hold nothing else that runs."""
    image: Text
    """Image of this product, by digest where that is possible."""
    plan_config_map: KubernetesName = "drbot-plan"
    """ConfigMap with this very file under the key dr-plan.yml."""
    service_account: KubernetesName | None = None
    """Account whose token jobs see, for `k8s:` references; empty: no token."""
    prover_service_account: KubernetesName | None = None
    """The same for restore tests alone; empty: `service_account`."""
    claims: tuple[JobClaim, ...] = ()
    """Volumes; without one for /var/lib/drbot the spool is limited by `ephemeral_storage`."""
    secrets: tuple[JobSecret, ...] = ()
    """What references of this plan need."""
    cpu: Cpu = "2"
    """Processors of a job."""
    memory: Bytes = "2Gi"
    """Memory of a job; beyond it the job is killed."""
    ephemeral_storage: Bytes = "1Gi"
    """Disk of the node a job may use; beyond it the job is evicted."""
    keep_finished: Duration = timedelta(days=1)
    """How long an ended Job is kept."""
