# Rules of a Cloister pod. The generator appends `policy_data := {...}`: the
# requests that this pod needs, written down before the pod runs.
#
# Reading guide
#   - A request is allowed only if a rule below says so; everything else is false.
#   - `i` is a part of the request, `p` the matching part of policy_data.
#   - Each check is one comparison on its own line, so that a refusal can name it.
#   - Only the text $(bundle-id) in policy_data stands for something else: the id
#     of the container being created, which may carry a restart suffix.
#
# State (data.pstate), changed only by the ops of an allowed request:
#   "sandbox"         true once the sandbox is created
#   "container:<id>"  {"index": n, "started": bool} for a live container
#   "finished:<n>"    true once container n of policy_data has ended with status 0
#   "file:<path>"     true once the declared file was sent
#   "retired:<id>"    true for an id that was removed; it is never accepted again

package agent_policy

import rego.v1

# What a request that failed in the guest has changed in the state is taken back.

default UndoFailedRequests := true

# Never allowed, in the order of the protocol.

default AddSwapPathRequest := false

default AddSwapRequest := false

default GetDiagnosticDataRequest := false

default GetIPTablesRequest := false

default GetMetricsRequest := false

default ListInterfacesRequest := false

default ListRoutesRequest := false

default MemAgentCompactConfig := false

default MemAgentMemcgConfig := false

default MemHotplugByProbeRequest := false

default PauseContainerRequest := false

default ReseedRandomDevRequest := false

default ResizeVolumeRequest := false

default ResumeContainerRequest := false

default SetGuestDateTimeRequest := false

default SetIPTablesRequest := false

default LoadPolicyFragmentRequest := false

default SetPolicyRequest := false

default StartTracingRequest := false

default StopTracingRequest := false

default UpdateContainerRequest := false

default UpdateEphemeralMountsRequest := false

default VolumeStatsRequest := false

default AllowRequestsFailingPolicy := false

# Always allowed: they end the pod or reveal nothing of the workload.

default DestroySandboxRequest := true

default GetOOMEventRequest := true

default GuestDetailsRequest := true

default OnlineCPUMemRequest := true

default RemoveStaleVirtiofsShareMountsRequest := true

# Allowed by a rule below.

default AddARPNeighborsRequest := false

default CloseStdinRequest := false

default ContainerExited := false

default CopyFileRequest := false

default CreateContainerRequest := false

default CreateSandboxRequest := false

default ExecProcessRequest := false

default ReadStreamRequest := false

default RemoveContainerRequest := false

default SignalProcessRequest := false

default StartContainerRequest := false

default StatsContainerRequest := false

default TtyWinResizeRequest := false

default UnsealFileRequest := false

default UnsealVariableRequest := false

default UpdateInterfaceRequest := false

default UpdateRoutesRequest := false

default WaitProcessRequest := false

default WriteStreamRequest := false

# --- sandbox ---------------------------------------------------------------

CreateSandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/sandbox", "value": true}]} if {
	not data.pstate.sandbox
	input == policy_data.sandbox.request
}

# --- containers ------------------------------------------------------------

CreateContainerRequest := {"allowed": true, "ops": ops} if {
	some index, p in policy_data.containers
	id := input.container_id
	container_id_of(id, p)
	data.pstate.sandbox
	not data.pstate[concat("", ["retired:", id])]
	not live(index)
	every before in earlier_init_containers(index) {
		finished(before)
	}
	every path in p.files {
		data.pstate[concat("", ["file:", path])]
	}
	init_process_of(input.exec_id, id)
	input.string_user == p.string_user
	input.sandbox_pidns == p.sandbox_pidns
	input.shared_mounts == p.shared_mounts
	input.devices == p.devices
	input.stdin_port == p.stdin_port
	input.stdout_port == p.stdout_port
	input.stderr_port == p.stderr_port
	same_spec(input.OCI, p.OCI, id)
	same_storages(input.storages, p.storages, id)
	ops := [{"op": "add", "path": concat("", ["/pstate/container:", id]), "value": {"index": index, "started": false}}]
}

# The id written in the policy or, when the pod restarts its containers, that id
# with the number of the restart. Ids are hexadecimal, so keys need no escaping.
container_id_of(id, p) if id == p.container_id

container_id_of(id, p) if {
	p.restarts
	prefix := concat("", [p.container_id, "-r"])
	startswith(id, prefix)
	regex.match(`^[1-9][0-9]{0,3}$`, substring(id, count(prefix), -1))
}

# Shims name the first process of a container by the container's id or not at all.
init_process_of(exec_id, _) if exec_id == ""

init_process_of(exec_id, id) if exec_id == id

live(index) if {
	some key, c in data.pstate
	startswith(key, "container:")
	c.index == index
}

finished(index) if data.pstate[sprintf("finished:%d", [index])]

earlier_init_containers(index) := [n |
	some n, c in policy_data.containers
	c.init
	n < index
]

same_spec(i, p, id) if {
	i.Version == p.Version
	same_process(i.Process, p.Process)
	i.Root.Readonly == p.Root.Readonly
	i.Root.Path == with_id(p.Root.Path, id)
	i.Hostname == p.Hostname
	i.Mounts == p.Mounts
	i.Hooks == p.Hooks
	i.Annotations == p.Annotations
	same_linux(i.Linux, p.Linux, id)
	i.Solaris == p.Solaris
	i.Windows == p.Windows
	object.keys(i) == object.keys(p)
}

same_process(i, p) if {
	i.Args == p.Args
	i.Env == p.Env
	i.Cwd == p.Cwd
	i.User == p.User
	i.Terminal == p.Terminal
	console_size(i)
	i.Capabilities == p.Capabilities
	i.NoNewPrivileges == p.NoNewPrivileges
	i.Rlimits == p.Rlimits
	i.ApparmorProfile == p.ApparmorProfile
	i.SelinuxLabel == p.SelinuxLabel
	i.OOMScoreAdj == p.OOMScoreAdj
	object.keys(i) == object.keys(p)
}

# The size of a terminal is the user's window and says nothing.
console_size(i) if is_null(i.ConsoleSize)

console_size(i) if i.Terminal

same_linux(i, p, id) if {
	i.CgroupsPath == with_id(p.CgroupsPath, id)
	i.Namespaces == p.Namespaces
	i.MaskedPaths == p.MaskedPaths
	i.ReadonlyPaths == p.ReadonlyPaths
	i.Sysctl == p.Sysctl
	i.Resources == p.Resources
	i.Devices == p.Devices
	i.Seccomp == p.Seccomp
	i.UIDMappings == p.UIDMappings
	i.GIDMappings == p.GIDMappings
	i.RootfsPropagation == p.RootfsPropagation
	i.MountLabel == p.MountLabel
	i.IntelRdt == p.IntelRdt
	object.keys(i) == object.keys(p)
}

# One to one: as many as declared, each declared, none twice. The image of a
# guest pull is bound by its source, which carries the digest.
same_storages(i, p, id) if {
	count(i) == count(p)
	expected := [with_mount_point(s, id) | some s in p]
	every n, s in i {
		same_storage(s, expected[n])
	}
}

same_storage(i, p) if {
	i.driver == p.driver
	i.source == p.source
	i.fstype == p.fstype
	i.mount_point == p.mount_point
	i.options == p.options
	i.driver_options == p.driver_options
	i.fs_group == p.fs_group
	i.shared == p.shared
	object.keys(i) == object.keys(p)
}

with_mount_point(s, id) := object.union(s, {"mount_point": with_id(s.mount_point, id)})

with_id(text, id) := replace(text, "$(bundle-id)", id)

# The policy entry of a live container.
known(id) := policy_data.containers[data.pstate[concat("", ["container:", id])].index]

StartContainerRequest := {"allowed": true, "ops": [{
	"op": "replace",
	"path": concat("", ["/pstate/container:", input.container_id, "/started"]),
	"value": true,
}]} if {
	data.pstate[concat("", ["container:", input.container_id])]
}

# Not a request: the guest says so itself when the first process of a container
# has ended. That a start was allowed does not show that anything ran.
ContainerExited := {"allowed": true, "ops": [{
	"op": "add",
	"path": sprintf("/pstate/finished:%d", [c.index]),
	"value": true,
}]} if {
	input.status == 0
	c := data.pstate[concat("", ["container:", input.container_id])]
	c.started
}

WaitProcessRequest if {
	known(input.container_id)
	process_id(input.exec_id)
}

StatsContainerRequest if known(input.container_id)

SignalProcessRequest if {
	p := known(input.container_id)
	process_id(input.exec_id)
	some signal in p.signals
	signal == input.signal
}

# Removing a live container retires its id.
RemoveContainerRequest := {"allowed": true, "ops": [
	{"op": "remove", "path": concat("", ["/pstate/container:", input.container_id])},
	{"op": "add", "path": concat("", ["/pstate/retired:", input.container_id]), "value": true},
]} if {
	data.pstate[concat("", ["container:", input.container_id])]
}

# Removing an id that was never admitted does nothing but retire it, so that a
# teardown after a refused create does not hang. Their number is bounded.
RemoveContainerRequest := {"allowed": true, "ops": [{
	"op": "add",
	"path": concat("", ["/pstate/retired:", input.container_id]),
	"value": true,
}]} if {
	not data.pstate[concat("", ["container:", input.container_id])]
	not data.pstate[concat("", ["retired:", input.container_id])]
	regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{1,127}$`, input.container_id)
	count(data.pstate) < 4096
}

# --- processes and streams -------------------------------------------------

# Empty, or an id that is safe as a file name.
process_id(exec_id) if exec_id == ""

process_id(exec_id) if regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`, exec_id)

# Anything but the first process was started by an allowed exec.
exec_process(id, exec_id) if {
	process_id(exec_id)
	not init_process_of(exec_id, id)
}

ExecProcessRequest if {
	p := known(input.container_id)
	exec_command(input.process, p)
	exec_process(input.container_id, input.exec_id)
	is_null(input.string_user)
	input.stdin_port == 0
	input.stdout_port == 0
	input.stderr_port == 0
	input.process.Env in exec_environments(p, input.process)
	input.process.Cwd == p.OCI.Process.Cwd
	input.process.User == p.OCI.Process.User
	input.process.NoNewPrivileges == p.OCI.Process.NoNewPrivileges
	exec_capabilities(input.process.Capabilities, p)
	console_size(input.process)
	input.process.Rlimits == p.OCI.Process.Rlimits
	input.process.ApparmorProfile == p.OCI.Process.ApparmorProfile
	input.process.SelinuxLabel == p.OCI.Process.SelinuxLabel
	input.process.OOMScoreAdj == p.OCI.Process.OOMScoreAdj
	object.keys(input.process) == object.keys(p.OCI.Process)
}

# Probes and hooks of this container, without a terminal.
exec_command(i, p) if {
	some command in p.exec_commands
	i.Args == command
	i.Terminal == false
}

# Commands that the author of the policy allowed by name.
exec_command(i, _) if {
	some command in policy_data.request_defaults.ExecProcessRequest.allowed_commands
	i.Args == command
}

# The container's environment; a terminal may add its type.
exec_environments(p, i) := [p.OCI.Process.Env] if not i.Terminal

exec_environments(p, i) := [p.OCI.Process.Env, array.concat(p.OCI.Process.Env, ["TERM=xterm"])] if i.Terminal

# As the container has them, or none named (the runtime then gives the container's).
exec_capabilities(i, _) if is_null(i)

exec_capabilities(i, p) if i == p.OCI.Process.Capabilities

exec_capabilities(i, _) if {
	every set in i {
		count(set) == 0
	}
}

ReadStreamRequest if {
	policy_data.request_defaults.ReadStreamRequest
	known(input.container_id)
	process_id(input.exec_id)
}

WriteStreamRequest if stdin_allowed(input.container_id, input.exec_id)

CloseStdinRequest if stdin_allowed(input.container_id, input.exec_id)

stdin_allowed(id, exec_id) if {
	p := known(id)
	p.stdin
	init_process_of(exec_id, id)
}

stdin_allowed(id, exec_id) if {
	policy_data.request_defaults.WriteStreamRequest
	known(id)
	exec_process(id, exec_id)
}

TtyWinResizeRequest if {
	known(input.container_id)
	process_id(input.exec_id)
}

# --- files -----------------------------------------------------------------

# Only declared files, whole and with the declared content. A container is not
# created before its files are there: one that is left out changes it as well.
CopyFileRequest := {"allowed": true, "ops": [{
	"op": "add",
	"path": concat("", ["/pstate/file:", replace(replace(input.path, "~", "~0"), "/", "~1")]),
	"value": true,
}]} if {
	p := policy_data.files[input.path]
	input == p
}

# A sealed secret is opened where the author has put it. All variables are the author's.
UnsealFileRequest if {
	input.path in known(input.container_id).files
	policy_data.files[input.path].data_sha256 == input.sha256
}

UnsealVariableRequest if input.variable in known(input.container_id).OCI.Process.Env

# --- network ---------------------------------------------------------------

UpdateInterfaceRequest if {
	i := input.interface
	p := policy_data.request_defaults.UpdateInterfaceRequest
	bits.and(i.raw_flags, bits.negate(p.allow_raw_flags)) == 0
	not i.name in p.forbidden_names
	not i.device in p.forbidden_names
	not lower(i.hwAddr) in p.forbidden_hw_addrs
	every a in i.IPAddresses {
		not forbidden(a.address, p.forbidden_addresses_regex)
		allowed_text(a.address, p.allowed_addresses_regex)
	}
}

UpdateRoutesRequest if {
	p := policy_data.request_defaults.UpdateRoutesRequest
	every r in input.routes.Routes {
		not r.device in p.forbidden_device_names
		not forbidden(r.source, p.forbidden_source_regex)
		not forbidden(r.dest, p.forbidden_source_regex)
		allowed_text(r.dest, p.allowed_dest_regex)
		allowed_text(r.gateway, p.allowed_gateway_regex)
	}
}

AddARPNeighborsRequest if {
	p := policy_data.request_defaults.AddARPNeighborsRequest
	every n in input.neighbors.ARPNeighbors {
		not n.device in p.forbidden_device_names
		n.toIPAddress.mask == ""
		not forbidden(n.toIPAddress.address, p.forbidden_cidrs_regex)
		n.state in p.allowed_states
		bits.or(n.flags, 136) == 136
	}
}

forbidden(text, patterns) if {
	some pattern in patterns
	regex.match(pattern, text)
}

allowed_text(text, patterns) if {
	some pattern in patterns
	regex.match(pattern, text)
}
