# The policy of one confidential pod under Kubernetes: which images run with which commands, and little else. Put your own containers into
# the table. `cloister initdata new --policy FILE` makes the policy part of the pod's initdata, which the hardware vouches for.
#
# Bound: image, program, arguments, environment, user, working directory, capabilities, every mount's place and kind, no devices, no exec.
# Not bound, because Kubernetes or the node chooses it anew for each pod. Do not rely on it:
#   - how often and in which order the containers run, when they are stopped, their limits, hostname and the pod's addresses and DNS;
#   - the content of `files`: the host writes ConfigMaps, Secrets, tokens and /etc/hosts. What must stay secret comes from the broker, and
#     sealed secrets are opened in variables of `env` only;
#   - the values of variables that the kubelet adds for services (`service_variable`);
#   - what the containers print: the host reads it. Take out ReadStreamRequest if it must not.

package agent_policy

import rego.v1

# By the name of the container in the pod. The program is all of command and args as it will run: when the pod leaves one out, the image's
# entrypoint or command. env has the image's and the pod's variables. cwd is the image's working directory, "/" when it names none.
containers := {"web": {
	"image": "registry.example/web@sha256:0000000000000000000000000000000000000000000000000000000000000000",
	"program": ["/web", "--listen=:8080"],
	"env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
	"uid": 0,
	"cwd": "/",
	"files": ["/etc/web", "/var/run/secrets/kubernetes.io/serviceaccount"], # ConfigMaps, Secrets, projected: the host's content
	"scratch": ["/cache"], # emptyDir of medium Memory, or on a disk with a key that only the guest knows
}}

# --- containers ------------------------------------------------------------

default CreateContainerRequest := false

CreateContainerRequest if {
	wanted := containers[input.OCI.Annotations["io.kubernetes.cri.container-name"]]
	images := [s.source | some s in input.storages; s.driver == "image_guest_pull"]
	count(images) == 1
	images[0] == wanted.image
	input.OCI.Process.Args == wanted.program
	input.OCI.Process.Cwd == wanted.cwd
	input.OCI.Process.User.UID == wanted.uid
	every variable in input.OCI.Process.Env { allowed_variable(variable, wanted.env) }
	every s in input.storages { allowed_storage(s) }
	every m in input.OCI.Mounts { allowed_mount(m, wanted) }
	confined
}

# The pod's own container: the guest takes its program from itself.
CreateContainerRequest if {
	count(input.storages) == 1
	input.storages[0].source == "pause"
	is_sandbox(input.storages[0])
	allowed_storage(input.storages[0])
	every m in input.OCI.Mounts { allowed_mount(m, {"files": [], "scratch": []}) }
	confined
}

# By this the guest knows that it shall not pull.
is_sandbox(s) if {
	count(s.driver_options) == 1
	description := json.unmarshal(trim_prefix(s.driver_options[0], "image_guest_pull="))
	object.keys(description) == {"metadata"}
	description.metadata["io.kubernetes.cri.container-type"] == "sandbox"
}

# A sealed secret is opened where the pod has it. In other variables, and in files, the host could put any.
default UnsealVariableRequest := false

UnsealVariableRequest if {
	some c in containers
	input.variable in c.env
}

default UnsealFileRequest := false

allowed_variable(variable, known) if variable in known

allowed_variable(variable, _) if regex.match(service_variable, variable)

service_variable := `^(HOSTNAME|[A-Z0-9_]+_SERVICE_HOST|[A-Z0-9_]+_SERVICE_PORT(_[A-Z0-9_]+)?|[A-Z0-9_]+_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)=[A-Za-z0-9.:/_-]*$`

# Nothing of the host's, and nothing of the guest's own.
confined if {
	input.OCI.Root.Path == root
	count(input.devices) == 0
	count(input.OCI.Linux.Devices) == 0
	count(input.shared_mounts) == 0
	is_null(input.OCI.Hooks)
	is_null(input.string_user)
	every n in input.OCI.Linux.Namespaces { n.Path == "" }
	every name, _ in input.OCI.Linux.Sysctl { startswith(name, "net.") }
	every kind in ["Bounding", "Effective", "Inheritable", "Permitted", "Ambient"] {
		every c in input.OCI.Process.Capabilities[kind] { c in capabilities }
	}
}

root := concat("", ["/run/kata-containers/", input.container_id, "/rootfs"])

# What containers have unless the pod asks for more.
capabilities := {
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

# --- volumes ---------------------------------------------------------------

allowed_storage(s) if {
	s.driver == "image_guest_pull"
	s.mount_point == root
}

allowed_storage(s) if {
	s.driver == "ephemeral"
	s.fstype == "tmpfs"
	regex.match(scratch_place, s.mount_point)
}

allowed_storage(s) if {
	s.driver == "local"
	regex.match(scratch_place, s.mount_point)
}

allowed_storage(s) if {
	s.driver in {"blk", "scsi", "mmioblk"}
	"encryption_key=ephemeral" in s.driver_options
	regex.match(scratch_place, s.mount_point)
}

# Where the guest keeps emptyDirs, and where it takes copies of the host's files: the host cannot write to the first.
scratch_place := `^/run/kata-containers/(sandbox/(ephemeral|storage|local)|shared/containers/[0-9a-f]{64}/rootfs/local)/[A-Za-z0-9_=.-]*[A-Za-z0-9_=-]$`

file_place := `^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-[^/]+$`

allowed_mount(m, wanted) if {
	m.type_ == "bind"
	m.destination in wanted.scratch
	regex.match(scratch_place, m.source)
}

allowed_mount(m, wanted) if {
	m.type_ == "bind"
	m.destination in wanted.files
	regex.match(file_place, m.source)
}

allowed_mount(m, _) if {
	m.type_ == "bind"
	m.destination in {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}
	regex.match(file_place, m.source)
}

allowed_mount(m, _) if {
	m.type_ == "bind"
	m.destination == "/dev/shm"
	m.source == "/run/kata-containers/sandbox/shm"
}

# What the guest's kernel shows.
allowed_mount(m, _) if {
	kernel_mounts[m.destination] == m.type_
	every option in ["bind", "rbind"] { not option in m.options }
}

kernel_mounts := {
	"/proc": "proc", "/sys": "sysfs", "/sys/fs/cgroup": "cgroup", "/dev": "tmpfs", "/dev/pts": "devpts",
	"/dev/mqueue": "mqueue", "/dev/shm": "tmpfs", "/run": "tmpfs",
}

# --- the pod ---------------------------------------------------------------

default CreateSandboxRequest := false

CreateSandboxRequest if {
	input.guest_hook_path == ""
	count(input.kernel_modules) == 0
	every s in input.storages {
		s.driver == "ephemeral"
		s.mount_point == "/run/kata-containers/sandbox/shm"
	}
}

# Only to places of copied files, never into emptyDirs or images.
default CopyFileRequest := false

CopyFileRequest if {
	regex.match(`^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-`, input.path)
	every part in split(input.path, "/") { not part in {".", ".."} }
	inside(input)
}

# A link lies in a volume and stays there: others would show one container's files to another, or to the host.
inside(i) if i.file_type != "Symlink"

inside(i) if {
	regex.match(`^/run/kata-containers/shared/containers/[^/]+/`, i.path)
	not startswith(i.symlink_target, "/")
	every part in split(i.symlink_target, "/") { part != ".." }
}

# The guest's own services listen on its loopback device, which is not the host's to change.
default UpdateInterfaceRequest := false

UpdateInterfaceRequest if {
	not "lo" in {input.interface.name, input.interface.device}
	every a in input.interface.IPAddresses { not loopback(a.address) }
}

default UpdateRoutesRequest := false

UpdateRoutesRequest if {
	every r in input.routes.Routes {
		r.device != "lo"
		every address in [r.dest, r.source] { not loopback(address) }
	}
}

default AddARPNeighborsRequest := false

AddARPNeighborsRequest if {
	every n in input.neighbors.ARPNeighbors {
		n.device != "lo"
		not loopback(n.toIPAddress.address)
	}
}

# In any spelling: 127.0.0.0/8, also inside IPv6, and ::1.
loopback(address) if {
	some pattern in [
		`^(::([fF]{4}:)?|(0{1,4}:){5}[fF]{4}:)?127\.`,
		`^(::|(0{1,4}:){5})[fF]{4}:7[fF][0-9a-fA-F]{2}:`,
		`^(0{0,4}:){1,7}0{0,3}1(/[0-9]{1,3})?$`,
	]
	regex.match(pattern, address)
}

# Only the message that a container leaves when it ends.
default GetDiagnosticDataRequest := false

GetDiagnosticDataRequest if input.log_type == "termination_log"

default DestroySandboxRequest := true

default GetOOMEventRequest := true

default GuestDetailsRequest := true

default ReadStreamRequest := true

default RemoveContainerRequest := true

default SignalProcessRequest := true

default StartContainerRequest := true

default StatsContainerRequest := true

default TtyWinResizeRequest := true

default WaitProcessRequest := true

# What is not named is refused. Written down is what a person may run into.
default CloseStdinRequest := false

default ExecProcessRequest := false

default PauseContainerRequest := false

default PortForwardRequest := false

default ResumeContainerRequest := false

default LoadPolicyFragmentRequest := false

default SetPolicyRequest := false

default UpdateContainerRequest := false

default WriteStreamRequest := false
