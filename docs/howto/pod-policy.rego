# A policy for one confidential pod: which images may run with which commands, and nothing else.
# Put in your own images and commands; `cloister initdata new --policy FILE` makes it part of the pod's initdata.
package agent_policy

import rego.v1

# By the name of the container in the pod: the image by digest, and the words of the command.
containers := {"web": {
	"image": "registry.example/web@sha256:0000000000000000000000000000000000000000000000000000000000000000",
	"command": ["/web", "--listen=:8080"],
}}

# What may be mounted into containers: paths the guest itself provides, and the kubelet's small files.
mountable := ["/run/kata-containers/sandbox/", "/run/kata-containers/shared/containers/"]

CreateContainerRequest if is_pause
CreateContainerRequest if is_listed

# The pod's own container: the guest takes its program from its own image.
is_pause if {
	count(input.storages) == 1
	image(input.storages[0])
	input.storages[0].source == "pause"
	plain
}

is_listed if {
	wanted := containers[input.OCI.Annotations["io.kubernetes.cri.container-name"]]
	images := [s | some s in input.storages; image(s)]
	count(images) == 1
	images[0].source == wanted.image
	every s in input.storages { allowed_storage(s) }
	every m in input.OCI.Mounts { allowed_mount(m) }
	input.OCI.Process.Args == wanted.command
	plain
}

# No devices of the host, no hooks, no namespaces of other pods.
plain if {
	count(input.devices) == 0
	count(input.shared_mounts) == 0
	is_null(input.OCI.Hooks)
}

image(s) if s.driver == "image_guest_pull"

allowed_storage(s) if image(s)

allowed_storage(s) if s.driver in {"ephemeral", "local"}

allowed_storage(s) if {
	s.driver in {"blk", "scsi"}
	"encryption_key=ephemeral" in s.driver_options
}

allowed_mount(m) if m.type_ in {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup"}

allowed_mount(m) if {
	m.type_ == "bind"
	some dir in mountable
	startswith(m.source, dir)
}

# The life of the pod.
CreateSandboxRequest if every s in input.storages { s.driver == "ephemeral" }

default AddARPNeighborsRequest := true
default CopyFileRequest := true
default DestroySandboxRequest := true
default GetDiagnosticDataRequest := true
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ReadStreamRequest := true
default RemoveContainerRequest := true
default SignalProcessRequest := true
default StartContainerRequest := true
default StatsContainerRequest := true
default TtyWinResizeRequest := true
default UpdateInterfaceRequest := true
default UpdateRoutesRequest := true
default WaitProcessRequest := true
