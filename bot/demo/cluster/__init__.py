"""A stand-in for a Kubernetes cluster: a real HTTP API of our own, for the demo and the tests.

It copies what the bot and its tests lean on: resource versions and 409, generations, strategic merge, merge and JSON
patch, server-side apply, dry run, selectors, watch, logs, cascading deletion; Deployments, StatefulSets, Jobs,
CronJobs and autoscalers that act; pods that are real processes; a GitOps controller that reverts drift.
Containers of the images it is given run as real processes too, with ConfigMaps, Secrets, claims and the downward API
as folders, and a termination message. There is one node of 64 GiB, and no isolation.
It makes no claim about RBAC, admission, networks, storage or paging (`limit` is ignored): one bearer token may do
everything. It serves HTTPS on 127.0.0.1 with a certificate of its own. Trouble can be
ordered through `/_control/faults`.
"""

from bot.demo.cluster.faults import Fault
from bot.demo.cluster.stand_in import ClusterStandIn

__all__ = ["ClusterStandIn", "Fault"]
