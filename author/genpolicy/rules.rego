# Rules of a Kubernetes pod. The generator appends `policy_data := {...}`.
#
# Reading guide
#   - A request is allowed only if a rule below says so; everything else is false.
#   - `i` is a part of the request, `p` the part of policy_data about the same container, `t` the tables made of `p`.
#   - Rules without input and state are tables. They say the same for every request, and the engine computes them once.
#   - Members of policy_data that only Cloister's generator writes are read with a default: data of the Kata generator
#     is accepted too, and gets what it says.
#
# State (data.pstate), changed only by the ops of an allowed request
#   "sandbox"           true once the sandbox was created
#   "pinned"            name, namespace, network namespace and id of the pod, as its first container gave them
#   "container:<id>"    {"index": n, "roots": [...], "env": [...]} of a container that was created and not removed
#   "live:<n>"          id of the container that runs as entry n of policy_data
#   "used:<n>"          true once entry n was created
#   "started:<n>"       id of the container whose start was allowed and whose end was not seen
#   "finished:<n>"      true once a container of entry n has ended with status 0
#   "retired:<id>"      true for an id that was removed; it is never accepted again
#   "removed"           how many of these had been created
#   "tree:<root>"       what was copied below a declared volume: path -> digest, "free", link or directory
#   "closed:<root>"     true once a container uses the volume: nothing more is copied. Of a volume that is bound in part
#                       {"index": n, "files": [...]}, the entry and the destinations of its mounts: it takes updates
#   "volume:<name>"     {"disk": d, "uses": n}: the disk of a volume of the pod, for as long as the pod lives, and how many
#                       creates relied on it, so that none of them can be taken back from under another

package agent_policy

import rego.v1

# --- never -----------------------------------------------------------------

default AddSwapPathRequest := false

default AddSwapRequest := false

default AllowRequestsFailingPolicy := false

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

default SetPolicyRequest := false

default StartTracingRequest := false

default StopTracingRequest := false

default UpdateContainerRequest := false

default VolumeStatsRequest := false

# --- always: they end the pod or tell nothing of the workload --------------

default DestroySandboxRequest := true

default GetOOMEventRequest := true

default GuestDetailsRequest := true

default OnlineCPUMemRequest := true

default RemoveStaleVirtiofsShareMountsRequest := true

# --- what a failed request has changed in the state goes, except ops marked as lasting ---

default UndoFailedRequests := true

# --- by a rule below -------------------------------------------------------

default AddARPNeighborsRequest := false

default CloseStdinRequest := false

default ContainerExited := false

default CopyFileRequest := false

default CreateContainerRequest := false

default CreateSandboxRequest := false

default ExecProcessRequest := false

default GetDiagnosticDataRequest := false

default HostStorageRequest := false

default LoadPolicyFragmentRequest := false

default PortForwardRequest := false

default ReadStreamRequest := false

default RemoveContainerRequest := false

default SignalProcessRequest := false

default StartContainerRequest := false

default StatsContainerRequest := false

default TtyWinResizeRequest := false

default UnsealFileRequest := false

default UnsealVariableRequest := false

default UpdateEphemeralMountsRequest := false

default UpdateInterfaceRequest := false

default UpdateRoutesRequest := false

default WaitProcessRequest := false

default WriteStreamRequest := false

# --- tables ----------------------------------------------------------------

containers := array.concat(policy_data.containers, [c | some f in fragments_loaded; some c in f.containers])

defaults := policy_data.request_defaults

common := policy_data.common

ours := object.get(policy_data, "cloister", {})

guest_pull := object.get(common, "allow_guest_pull_images", true)

pinned_only := object.get(common, "require_pinned_image_digests", false)

# Entries of policy_data.containers by the name of the container; the pause container has none.
by_name[name] contains index if {
	some index, c in containers
	name := object.get(object.get(c.OCI, "Annotations", {}), "io.kubernetes.cri.container-name", "")
}

container_names := array.concat([name | some name, _ in by_name; name != ""], [""])

# Text with placeholders becomes a regular expression: what stands for one id of the request is written \$\(...\), and
# the request's own id is exchanged for the same text before they are compared. So the expressions stay the same.
anchored(pattern) := concat("", ["^(?:", with_paths(pattern), ")$"])

with_paths(text) := replace(
	replace(
		replace(
			replace(replace(text, "$(sfprefix)", common.sfprefix), "$(root_path)", common.root_path),
			"$(cpath)", common.cpath,
		),
		"$(bundle-id)", `\$\(bundle-id\)`,
	),
	"$(sandbox-id)", `\$\(sandbox-id\)`,
)

# $0 is what was found.
quoted(text) := regex.replace(text, `[\\.+*?()\[\]{}^$|]`, `\$0`)

is_pattern(source) if startswith(source, "^")

is_pattern(source) if contains(source, "$(")

# What the cluster fills in, as it may look. The pod's name and namespace are put in when a request is judged.
placeholders := {
	`\$\(host-name\)`: `[A-Za-z0-9._-]*`,
	`\$\(node-name\)`: `[A-Za-z0-9._-]*`,
	`\$\(pod-uid\)`: `[A-Za-z0-9_-]*`,
	`\$\(resource-field\)`: `[0-9]*`,
	`\$\(todo-annotation\)`: `[\s\S]*`,
	`\$\(pod-ip\)`: address_pattern,
	`\$\(host-ip\)`: address_pattern,
	`\$\(pod-ips\)`: addresses_pattern,
	`\$\(host-ips\)`: addresses_pattern,
}

# Pods of a cluster with both families have an address of each.
addresses_pattern := concat("", [address_pattern, "(?:,", address_pattern, ")?"])

address_pattern := concat("", [
	`(?:(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])(?:\.(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])){3}`,
	`|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})`,
])

has_placeholder(text) if {
	contains(text, "$(")
	regex.match(
		`\$\((?:host-name|node-name|pod-uid|resource-field|todo-annotation|pod-ips?|host-ips?|sandbox-name|sandbox-namespace|cluster:[A-Za-z0-9_.-]+)\)`,
		text,
	)
}

template(text, c) := concat("", ["^", strings.replace_n(object.union(placeholders, cluster_values(c)), quoted(text)), "$"])

# Variables that the cluster adds, where the manifest names them.
cluster_values(c) := {quoted(concat("", ["$(cluster:", name, ")"])): pattern |
	some name, pattern in object.get(c, "cluster_values", {})
}

# A template of the policy with what this pod is called. To split and to join costs a third of what replace does.
for_pod(pattern, pod) := concat(
	quoted(pod.namespace),
	split(concat(quoted(pod.name), split(pattern, `\$\(sandbox-name\)`)), `\$\(sandbox-namespace\)`),
) if contains(pattern, `\$\(sandbox-n`)

for_pod(pattern, _) := pattern if not contains(pattern, `\$\(sandbox-n`)

env_name(text) := split(text, "=")[0]

capability_names := ["Ambient", "Bounding", "Effective", "Inheritable", "Permitted"]

capability_set(list) := {short |
	some c in list
	some name in expanded(c)
	short := trim_prefix(name, "CAP_")
}

expanded("$(default_caps)") := common.default_caps

expanded("$(privileged_caps)") := common.privileged_caps

expanded(c) := [c] if not c in {"$(default_caps)", "$(privileged_caps)"}

# Annotations whose value has a rule of its own, or is a pattern.
special_annotations := {
	"io.kubernetes.cri.container-name", "io.kubernetes.cri.container-type", "io.kubernetes.cri.image-name",
	"io.kubernetes.cri.sandbox-id", "io.kubernetes.cri.sandbox-log-directory", "io.kubernetes.cri.sandbox-name",
	"io.kubernetes.cri.sandbox-namespace", "nerdctl/network-namespace",
	"io.katacontainers.pkg.oci.bundle_path", "io.katacontainers.pkg.oci.container_type",
}

# table holds, for each entry of policy_data.containers, what its requests are looked up in.
table[index] := t if {
	some index, c in containers
	annotations := object.get(c.OCI, "Annotations", {})
	process := c.OCI.Process
	env := object.get(process, "Env", [])
	args := object.get(process, "Args", [])
	mounts := spelled(object.get(c.OCI, "Mounts", []), c)
	t := {
		"root": anchored(c.OCI.Root.Path),
		"annotations": {k: v | some k, v in annotations; not k in special_annotations},
		"env": {v | some v in env; not has_placeholder(v)},
		"env_names": {env_name(v) | some v in env; not has_placeholder(v)},
		"env_once": count({env_name(v) | some v in env}) == count({v | some v in env}),
		"env_templates": {name: patterns |
			some one in env
			has_placeholder(one)
			name := env_name(one)
			patterns := [template(v, c) | some v in env; has_placeholder(v); env_name(v) == name]
		},
		"args": [replace(v, "$$", "$") | some v in args],
		"arg_templates": {n: template(replace(v, "$$", "$"), c) | some n, v in args; has_placeholder(v)},
		"mounts": {m | some m in mounts; m.source != ""; not is_pattern(m.source)},
		"mounts_at": {d: list |
			some m in mounts
			d := m.destination
			list := [mount_entry(x) | some x in mounts; x.destination == d]
		},
		"capability_lists": {name: list |
			some name in capability_names
			list := [full | some c in object.get(process.Capabilities, name, []); some full in expanded(c)]
		},
		"capabilities": {name: capability_set(object.get(process.Capabilities, name, [])) | some name in capability_names},
		"groups": {g | some g in object.get(process.User, "AdditionalGids", [])},
		"namespaces": [ns | some n in c.OCI.Linux.Namespaces; ns := {"Type": namespace_type(n.Type), "Path": n.Path}],
		"masked": {m | some m in object.get(c.OCI.Linux, "MaskedPaths", [])},
		"readonly": {m | some m in object.get(c.OCI.Linux, "ReadonlyPaths", [])},
		"devices": {d.Path: d.Type | some d in object.get(c.OCI.Linux, "Devices", [])},
		"sysctl": object.get(c.OCI.Linux, "Sysctl", {}),
		"required_texts": {v |
			required := {name | some name in object.get(c, "required_env", [])}
			some v in env
			not has_placeholder(v)
			env_name(v) in required
		},
		"required_names": {name | some name in object.get(c, "required_env", [])} - {env_name(v) | some v in env; not has_placeholder(v)},
		"required_mounts": {d | some d in object.get(c, "required_mounts", [])},
		"volume_at": {m.destination: m.volume | some m in mounts},
		"plain": {m.written: m.destination | some m in object.get(c.OCI, "Mounts", [])},
		"directories": spelled(object.get(c, "directories", []), c),
		"storages": [storage_entry(s) | some s in c.storages; not is_layer(s)],
		"layers": {place: layer |
			some s in c.storages
			is_layer(s)
			some place, layer in layer_forms(s)
		},
		"layer_count": count([s | some s in c.storages; is_layer(s)]),
		"files": [object.union(f, {"alone": count(contents_of[f.base]) == 1}) | some f in spelled(object.get(c, "files", []), c); binds(f)],
		"before": before(c),
	}
}

# Runtimes leave a destination as the manifest writes it, with a slash at its end, say. What is about it is there for both.
spelled(list, c) := array.concat(list, [object.union(x, {"destination": m.written}) |
	some m in object.get(c.OCI, "Mounts", [])
	m.written
	some x in list
	x.destination == m.destination
])

is_layer(s) if s.driver == "erofs-verity-layer"

# A storage with the place that it is mounted at, as mount_entry has sources.
storage_entry(s) := object.union(s, {"disk": s.mount_point == "$(spath)/$(b64_device_id)", "at": {k: v |
	not contains(s.mount_point, "$(b64_device_id)")
	some k in ["literal", "sandbox", "bundle"]
	k == source_kind(s.mount_point)
	v := source_forms(s.mount_point)[k]
}})

# A layer by the option that says which one of the image it is. Hosts attach all layers as one disk with partitions, or each
# as a disk of its own: then one option stands for the two of the policy, and what is bound is the same.
layer_forms(s) := {place: object.union(s, {"mount_point": anchored(s.mount_point), "options": options}) |
	some o in s.options
	startswith(o, "X-kata.partition-number=")
	own := replace(o, "X-kata.partition-number=", "X-cloister.layer-number=")
	some place, options in {
		o: {x | some x in s.options},
		own: ({x | some x in s.options} - {o, "X-kata.gpt-partitioned=true"}) | {own},
	}
}

# Files of a mount are bound, or those of them whose content is known.
binds(f) if f.bound

binds(f) if f.free

# What the policy says is in volumes, by the last element of where they are mounted.
contents_of[base] contains {"single": f.single, "entries": f.entries, "free": object.get(f, "free", null)} if {
	some c in containers
	some f in object.get(c, "files", [])
	binds(f)
	base := f.base
}

volumes_on_disks := {s.volume | some c in containers; some s in c.storages}

# A mount with its source as one of: disk, literal, and expressions in which the id of the sandbox or the container stands.
mount_entry(m) := object.union(
	{"type_": m.type_, "options": m.options, "source": m.source},
	{k: v |
		some k in ["disk", "literal", "sandbox", "bundle"]
		k == source_kind(m.source)
		v := source_forms(m.source)[k]
	},
)

source_kind("") := "disk"

source_kind(source) := "literal" if {
	source != ""
	not is_pattern(source)
}

source_kind(source) := "sandbox" if contains(source, "$(sandbox-id)")

source_kind(source) := "bundle" if {
	is_pattern(source)
	not contains(source, "$(sandbox-id)")
}

source_forms(source) := {"disk": true, "literal": source, "sandbox": anchored(source), "bundle": anchored(source)}

namespace_type("mnt") := "mount"

namespace_type(name) := name if name != "mnt"

# The entries that must have run, or be running, before c is created.
before(c) := {n: kind |
	object.get(ours, "enforce_order", false)
	some n, other in containers
	object.get(other, "must_run", false)
	object.get(other, "order", 0) < object.get(c, "order", 0)
	kind := object.get(other, "kind", "")
}

env_patterns := [filled |
	some pattern in object.get(object.get(defaults, "CreateContainerRequest", {}), "allow_env_regex", [])
	filled := strings.replace_n(
		{
			"$(ipv4_a)": common.ipv4_a, "$(ip_p)": common.ip_p, "$(dns_label)": common.dns_label,
			"$(svc_name_downward_env)": common.svc_name_downward_env, "$(svc_name)": object.get(common, "svc_name", "$^"),
		},
		pattern,
	)
]

env_pattern := concat("|", [concat("", ["(?:", p, ")"]) | some p in env_patterns])

# The same for a text of several lines, each of them one match.
env_lines := concat("", ["(?m)^.*?(?:", env_pattern, ").*$"])

# --- sandbox ---------------------------------------------------------------

CreateSandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/sandbox", "value": true}]} if {
	not data.pstate.sandbox
	input.guest_hook_path == ""
	count(input.kernel_modules) == 0
	input.sandbox_pidns == false
	every i in input.storages {
		some p in policy_data.sandbox.storages
		sandbox_storage(i, p)
	}
	count({s.mount_point | some s in input.storages}) == count(input.storages)
}

sandbox_storage(i, p) if {
	i.driver == p.driver
	i.source == p.source
	i.fstype == p.fstype
	i.mount_point == p.mount_point
	i.options == p.options
	i.driver_options == p.driver_options
	i.fs_group == p.fs_group
	i.shared == object.get(p, "shared", false)
}

# --- containers ------------------------------------------------------------

annotation(key) := object.get(input.OCI.Annotations, key, "")

CreateContainerRequest := {"allowed": true, "ops": ops} if {
	fragments_ready
	plain(input)
	container_name := annotation("io.kubernetes.cri.container-name")
	container_name in container_names
	some index in by_name[container_name]
	p := containers[index]
	t := table[index]
	id := input.container_id
	regex.match(`^[a-z0-9][a-z0-9.-]*$`, id)
	pod := {
		"id": annotation("io.kubernetes.cri.sandbox-id"),
		"name": annotation("io.kubernetes.cri.sandbox-name"),
		"namespace": annotation("io.kubernetes.cri.sandbox-namespace"),
		"network": network_namespace(input.OCI.Linux.Namespaces),
	}
	right_type(input.OCI.Annotations, p.OCI.Annotations)
	right_pod(pod, p.OCI.Annotations)
	not contains(input.OCI.Root.Path, "$(")
	regex.match(t.root, concat("$(bundle-id)", split(input.OCI.Root.Path, id)))
	fresh(index, id, p)
	in_turn(t)
	input.sandbox_pidns == p.sandbox_pidns
	right_version(input.OCI.Version, p.OCI.Version)
	input.OCI.Root.Readonly == p.OCI.Root.Readonly
	right_log_directory(input.OCI.Annotations, p.OCI.Annotations, pod)
	right_annotations(input.OCI.Annotations, p, t)
	right_process(input.OCI.Process, p.OCI.Process, t, pod)
	right_hostname(p)
	right_linux(input.OCI.Linux, t)
	right_mounts(input.OCI.Mounts, t, pod)
	right_root(p)
	disks := right_disks(t)
	right_storages(t, pod, disks)
	right_devices(input.devices, p, input.OCI.Annotations)
	roots := volumes(t)
	ops := array.concat(array.concat(pin(pod), keep(disks)), array.concat([{"op": "add", "path": concat("", ["/pstate/closed:", pointer(r)]), "value": closed(index, t, r)} | some r in roots], [
		{"op": "add", "path": concat("", ["/pstate/container:", id]), "value": {"index": index, "roots": roots, "env": input.OCI.Process.Env}},
		{"op": "add", "path": sprintf("/pstate/live:%d", [index]), "value": id},
		{"op": "add", "path": sprintf("/pstate/used:%d", [index]), "value": true},
	]))
}

# What no container of a pod has: all of it changes the container behind the policy's back.
plain(i) if {
	count(i.shared_mounts) == 0
	is_null(i.string_user)
	i.exec_id in {"", i.container_id}
	ports_allowed(i)
	is_null(i.OCI.Hooks)
	is_null(i.OCI.Solaris)
	is_null(i.OCI.Windows)
	count(i.OCI.Linux.GIDMappings) == 0
	count(i.OCI.Linux.UIDMappings) == 0
	i.OCI.Linux.MountLabel == ""
	i.OCI.Linux.RootfsPropagation == ""
	is_null(i.OCI.Linux.IntelRdt)
	is_null(i.OCI.Linux.Seccomp)
	plain_resources(i.OCI.Linux.Resources)
	i.OCI.Process.SelinuxLabel == ""
	i.OCI.Process.User.Username == ""
}

plain_resources(i) if is_null(i)

plain_resources(i) if {
	count(i.Devices) == 0
	is_null(i.BlockIO)
	is_null(i.Network)
	is_null(i.Pids)
	plain_memory(i.Memory)
	plain_processor(i.CPU)
}

# How much of memory and processors a container gets is the host's: it gives them to the machine. Nothing that makes pods
# sets these; they change how the guest's kernel treats the container.
plain_memory(i) if is_null(i)

plain_memory(i) if {
	i.DisableOOMKiller == false
	i.Kernel == 0
	i.KernelTCP == 0
	i.Swappiness == 0
}

plain_processor(i) if is_null(i)

plain_processor(i) if {
	i.RealtimeRuntime == 0
	i.RealtimePeriod == 0
}

# Streams that the host opens itself pass no rule for streams later.
ports_allowed(i) if {
	i.stdin_port == 0
	i.stdout_port == 0
	i.stderr_port == 0
}

ports_allowed(i) if {
	port_allowed(i.stdin_port, "WriteStreamRequest")
	port_allowed(i.stdout_port, "ReadStreamRequest")
	port_allowed(i.stderr_port, "ReadStreamRequest")
}

port_allowed(port, _) if port == 0

port_allowed(_, setting) if defaults[setting] == true

# The id is new, nothing runs in its place, and a container that must not come back has not been there.
fresh(index, id, p) if {
	not data.pstate[concat("", ["container:", id])]
	not data.pstate[concat("", ["retired:", id])]
	not data.pstate[sprintf("live:%d", [index])]
	may_restart(index, p)
	not prepared(index, p)
}

# What prepares a pod does so until it has succeeded: again, it could undo what the others have done since.
prepared(index, p) if {
	object.get(ours, "enforce_order", false)
	object.get(p, "kind", "") == "init"
	data.pstate[sprintf("finished:%d", [index])]
}

may_restart(_, p) if object.get(p, "restarts", true)

may_restart(index, _) if not data.pstate[sprintf("used:%d", [index])]

in_turn(t) if {
	every n, kind in t.before {
		has_run(n, kind)
	}
}

has_run(n, "init") if data.pstate[sprintf("finished:%d", [n])]

has_run(n, "sidecar") if data.pstate[sprintf("started:%d", [n])]

# The first container says which pod this is, the others say the same.
pin(pod) := [{"op": "add", "path": "/pstate/pinned", "value": pod, "lasts": true}] if not data.pstate.pinned

pin(pod) := [] if data.pstate.pinned == pod

network_namespace(list) := "" if count([n | some n in list; n.Type == "network"]) == 0

network_namespace(list) := paths[0] if {
	paths := [n.Path | some n in list; n.Type == "network"]
	count(paths) == 1
}

# Which version of the runtime specification the node's containerd writes depends on its own version, and changes nothing.
right_version(oci_version, wanted) if oci_version == wanted

right_version(oci_version, "") if regex.match(`^1\.[0-9]+\.[0-9]+(-[0-9a-z.+-]+)?$`, oci_version)

right_type(i, p) if {
	i["io.kubernetes.cri.container-type"] == p["io.kubernetes.cri.container-type"]
	i["io.katacontainers.pkg.oci.container_type"] == kata_types[p["io.kubernetes.cri.container-type"]]
}

kata_types := {"sandbox": "pod_sandbox", "container": "pod_container"}

right_pod(pod, p) if {
	regex.match(object.get(p, "io.kubernetes.cri.sandbox-id", "^[a-z0-9]{64}$"), pod.id)
	regex.match(object.get(p, "io.kubernetes.cri.sandbox-name", ""), pod.name)
	right_namespace(pod.namespace, object.get(p, "io.kubernetes.cri.sandbox-namespace", ""))
}

right_namespace(_, "") := true

right_namespace(namespace, namespace) if namespace != ""

# Only the pause container writes logs for the pod and joins its network.
right_log_directory(i, p, pod) if {
	p["io.kubernetes.cri.container-type"] == "sandbox"
	regex.match(p["nerdctl/network-namespace"], i["nerdctl/network-namespace"])
	regex.match(
		replace(
			replace(p["io.kubernetes.cri.sandbox-log-directory"], "$(sandbox-name)", quoted(pod.name)),
			"$(sandbox-namespace)", quoted(pod.namespace),
		),
		i["io.kubernetes.cri.sandbox-log-directory"],
	)
}

right_log_directory(i, p, _) if {
	p["io.kubernetes.cri.container-type"] == "container"
	not i["nerdctl/network-namespace"]
	not i["io.kubernetes.cri.sandbox-log-directory"]
}

right_annotations(i, p, t) if {
	every key, value in t.annotations {
		object.get(i, key, value) == value
	}
	every key in (object.keys(i) - object.keys(p.OCI.Annotations)) {
		undeclared_annotation(key, i[key], p)
	}
	right_bundle_path(object.get(i, "io.katacontainers.pkg.oci.bundle_path", ""))
	right_image_name(i, p)
}

# Where the node's containerd keeps its state is its own affair.
right_bundle_path("") := true

right_bundle_path(bundle_path) if endswith(bundle_path, concat("", ["/", input.container_id]))

undeclared_annotation(key, _, _) if startswith(key, "io.kubernetes.cri.")

undeclared_annotation(key, value, p) if {
	some key_pattern, value_pattern in object.get(p, "runtime_anno_patterns", {})
	regex.match(key_pattern, key)
	regex.match(value_pattern, value)
}

right_image_name(i, p) if {
	name := i["io.kubernetes.cri.image-name"]
	right_image(name, p)
}

right_image_name(i, _) if not i["io.kubernetes.cri.image-name"]

# --- image -----------------------------------------------------------------

# Written by Cloister's generator: one of the digests of the image, or its name where that was accepted.
right_image(reference, p) if {
	contains(reference, "@")
	regex.replace(lower(reference), `^[^@]*@`, "") in p.image.digests
}

right_image(reference, p) if {
	p.image.by_tag
	not pinned_only
	reference in p.image.names
}

# The guest has the image of the pause container built in. What the host calls it does not matter.
right_image(_, p) if {
	is_null(object.get(p, "image", null))
	p.OCI.Annotations["io.kubernetes.cri.container-type"] == "sandbox"
}

# Written by the Kata generator: the digest of the name in the manifest, or that name.
right_image(reference, p) if {
	not p.image
	declared := p.OCI.Annotations["io.kubernetes.cri.image-name"]
	contains(declared, "@sha256:")
	contains(reference, "@") # what looks like a digest alone is a name with a tag
	regex.replace(lower(reference), `^[^@]*@`, "") == regex.replace(lower(declared), `^[^@]*@`, "")
}

right_image(reference, p) if {
	not p.image
	not pinned_only
	declared := p.OCI.Annotations["io.kubernetes.cri.image-name"]
	not contains(declared, "@")
	full_name(reference) == full_name(declared)
}

# How Docker's registry, which needs no naming, is named in full.
full_name(reference) := reference if named_registry(reference)

full_name(reference) := concat("", ["docker.io/", reference]) if {
	not named_registry(reference)
	contains(reference, "/")
}

full_name(reference) := concat("", ["docker.io/library/", reference]) if not contains(reference, "/")

named_registry(reference) if {
	parts := split(reference, "/")
	count(parts) > 1
	regex.match(`[.:]|^localhost$`, parts[0])
}

pulled := [s | some s in input.storages; s.driver == "image_guest_pull"]

# The root file system is what the policy declares: one image pulled in the guest, or the layers among the storages.
right_root(p) if {
	count(pulled) == 0
	root_elsewhere(p)
}

right_root(p) if {
	count(pulled) == 1
	not layered(p)
	guest_pull
	some s in pulled
	s.fstype == "overlay"
	is_null(s.fs_group)
	s.shared == false
	count(s.options) == 0
	s.mount_point == input.OCI.Root.Path
	right_source(s.source, p)
	for_sandbox(s.driver_options) == {p.OCI.Annotations["io.kubernetes.cri.container-type"]}
}

# The guest gives its own pause program to a container whose options say so, whatever the source is.
for_sandbox(options) := {kind |
	some o in options
	metadata := json.unmarshal(trim_prefix(o, "image_guest_pull=")).metadata
	some key in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]
	kind := metadata[key]
}

root_elsewhere(p) if layered(p)

# The Kata generator does not say where the root comes from when it is not pulled.
root_elsewhere(_) if count(ours) == 0

layered(p) if {
	some s in p.storages
	s.driver == "erofs-verity-layer"
}

right_source("pause", p) if {
	is_null(object.get(p, "image", null))
	p.OCI.Annotations["io.kubernetes.cri.container-type"] == "sandbox"
	not p.OCI.Annotations["io.kubernetes.cri.image-name"]
}

right_source(source, p) if {
	p.OCI.Annotations["io.kubernetes.cri.container-type"] == "container"
	right_image(source, p)
}

right_source(source, p) if {
	p.OCI.Annotations["io.kubernetes.cri.container-type"] == "sandbox"
	p.image
	right_image(source, p)
}

# --- process ---------------------------------------------------------------

right_process(i, p, t, pod) if {
	right_args(i.Args, t, pod)
	right_identity(i, p, t)
	i.Terminal == p.Terminal
	right_capabilities(i.Capabilities, t)
	right_env(i.Env, t, pod)
	i.Rlimits == object.get(p, "Rlimits", i.Rlimits)
	i.ApparmorProfile == object.get(p, "ApparmorProfile", i.ApparmorProfile)
	i.OOMScoreAdj == object.get(p, "OOMScoreAdj", i.OOMScoreAdj)
}

right_args(i, t, _) if i == t.args

right_args(i, t, pod) if {
	count(t.arg_templates) > 0
	count(i) == count(t.args)
	fitting := {n: i[n] | some n, pattern in t.arg_templates; regex.match(for_pod(pattern, pod), i[n])}

	# The arguments as they may be: what was given where it fits the template, the policy's text elsewhere.
	i == [v | some n, text in t.args; v := object.get(fitting, n, text)]
}

right_identity(i, p, t) if {
	i.Cwd == object.get(p, "Cwd", "")
	i.NoNewPrivileges == p.NoNewPrivileges
	i.User.UID == p.User.UID
	i.User.GID == p.User.GID
	{g | some g in i.User.AdditionalGids} == t.groups
}

right_capabilities(i, t) if i == t.capability_lists

right_capabilities(i, t) if {
	every name in capability_names {
		given := {trim_prefix(c, "CAP_") | some c in i[name]}
		missing_capabilities := t.capabilities[name] - given
		missing_capabilities == set()
		surplus_capabilities := given - t.capabilities[name]
		surplus_capabilities == set()
	}
}

# No variable that the policy does not have, and none twice: which one counts is not for the host to say.
right_env(i, t, pod) if {
	given := {v | some v in i}
	count(given) == count(i)
	rest := given - t.env
	names := {split(v, "=")[0] | some v in rest}
	once(given, names, rest, t)
	every v in rest - of_cluster(rest) {
		right_variable(v, t, pod)
	}
	missing_of_required_env := {env_name(v) | some v in t.required_texts - given} | (t.required_names - names)
	missing_of_required_env == set()
}

once(_, names, rest, t) if {
	t.env_once
	count(names) == count(rest)
	variables_with_another_value := names & t.env_names
	variables_with_another_value == set()
}

once(given, _, _, t) if {
	not t.env_once
	count({env_name(v) | some v in given}) == count(given)
}

# Those that the cluster adds to every container are found all at once, as lines of one text. Where a variable has several lines,
# each of them is looked at by itself. (No rule here has an else: the engine's memory for the policy would double.)
of_cluster(variables) := {line | single_lines(variables); some line in regex.find_n(env_lines, concat("\n", variables), -1)}

single_lines(variables) if {
	env_pattern != ""
	count(split(concat("\n", variables), "\n")) == count(variables)
}

right_variable(v, t, pod) if {
	some pattern in t.env_templates[env_name(v)]
	regex.match(for_pod(pattern, pod), v)
}

right_variable(v, _, _) if {
	env_pattern != ""
	regex.match(env_pattern, v)
}

right_hostname(p) if input.OCI.Hostname == object.get(p.OCI, "Hostname", input.OCI.Hostname)

right_linux(i, t) if {
	right_namespaces(i.Namespaces, t.namespaces)
	masked := {m | some m in i.MaskedPaths}
	readonly := {m | some m in i.ReadonlyPaths}
	t.masked - masked == set()
	(t.readonly - readonly) - masked == set()
	every path in ((masked | readonly) - (t.masked | t.readonly)) {
		of_the_kernel(path)
	}
	{d.Path | some d in i.Devices} - object.keys(t.devices) == set()
	every d in i.Devices {
		right_node(d, t.devices[d.Path])
	}
	every name, value in i.Sysctl {
		value == t.sysctl[name]
	}
}

# A disk is no other kind of device, which the host could choose by its number. The Kata generator may not say which kind it is.
right_node(i, kind) if i.Type == kind

right_node(_, _) if count(ours) == 0

# Versions of containerd hide more or less of these. Anywhere else a mask would take files of the image or the owner away.
of_the_kernel(path) if {
	regex.match(`^/(proc/[a-z_-]+|sys/.+)$`, path)
	not contains(path, "..")
	not path in {"/proc/self", "/proc/thread-self"}
}

right_namespaces(i, p) if i == p

right_namespaces(i, p) if {
	namespaces := [{"Type": namespace_type(n.Type), "Path": n.Path} | some n in i; not n.Type in {"network", "cgroup"}]
	namespaces == p
}

# --- mounts ----------------------------------------------------------------

# A destination that is mounted twice would show the second only, so no two mounts share one.
right_mounts(i, t, pod) if {
	destinations := {object.get(t.plain, m.destination, m.destination) | some m in i}
	count(destinations) == count(i)
	every m in ({m | some m in i} - t.mounts) {
		some p in t.mounts_at[m.destination]
		right_mount(m, p, pod)
	}
	missing_of_required_mounts := t.required_mounts - destinations
	missing_of_required_mounts == set()
}

right_mount(i, p, pod) if {
	i.type_ == p.type_
	i.options == p.options
	right_mount_source(i.source, p, pod)
}

# /sys may be read-only where the policy lets it be written.
right_mount(i, p, _) if {
	i.type_ == "sysfs"
	p.type_ == "sysfs"
	i.source == p.source
	{o | some o in i.options} | {"rw"} == {o | some o in p.options} | {"ro"}
}

# Kernels add options to the control group file system.
right_mount(i, p, _) if {
	i.type_ == "cgroup"
	p.type_ == "cgroup"
	i.source == p.source
	{o | some o in p.options} - {o | some o in i.options} == set()
	extra := {o | some o in i.options} - {o | some o in p.options}
	extra - {o | some o in object.get(policy_data.cluster_config, "cgroup_mount_extras_allowed", [])} == set()
}

right_mount_source(source, p, _) if {
	regex.match(p.bundle, concat("$(bundle-id)", split(source, input.container_id)))
	not contains(source, "$(")
}

right_mount_source(source, p, _) if source == p.literal

right_mount_source(source, p, pod) if {
	regex.match(p.sandbox, concat("$(sandbox-id)", split(source, pod.id)))
	not contains(source, "$(")
}

# A disk of the host: its storage says where it is, and is judged as such.
right_mount_source(source, p, _) if {
	p.disk
	some s in input.storages
	s.driver in {"blk", "scsi"}
	s.mount_point == source
	source == disk_mount_point(s)
}

disk_mount_point(s) := concat("/", [common.spath, base64url.encode(s.source)])

# --- storages --------------------------------------------------------------

# One to one: as many as declared, each declared, each declared one there, none twice. A disk that is declared as shared
# comes once for each of its mounts.
right_storages(t, pod, disks) if {
	layers := [s | some s in input.storages; is_lower(s)]
	right_layers(layers, t)
	uppers := [s | some s in input.storages; is_upper(s)]
	right_uppers(uppers, layers, disks)
	others := [s | some s in input.storages; s.driver != "image_guest_pull"; not is_lower(s); not is_upper(s); not is_directory(s, t)]
	count(others) == count(t.storages)
	every i in others {
		some s in t.storages
		right_storage(i, s, pod, disks)
	}
	every s in t.storages {
		some i in others
		right_storage(i, s, pod, disks)
	}
	single := [s | some s in others; not s.shared]
	count({[s.driver, s.source, s.mount_point] | some s in single}) == count(single)
}

# The directory of a volume that a sub-path mounts. Where that is, its mount is judged by.
is_directory(s, t) if {
	s.driver == "local"
	some m in input.OCI.Mounts
	m.source == s.mount_point
	some p in t.directories
	m.destination == p.destination
	s.source == "local"
	s.fstype == "local"
	s.options == p.options
	count(s.driver_options) == 0
	is_null(s.fs_group)
	s.shared == false
}

right_storage(i, p, pod, disks) if {
	i.fstype == p.fstype
	i.options == p.options
	i.driver_options == p.driver_options
	i.fs_group == p.fs_group
	i.shared == object.get(p, "shared", false)
	right_device_source(i, p)
	right_mount_point(i, p, pod)
	right_volume(i, p, disks)
}

right_device_source(i, p) if {
	p.driver != ""
	i.driver == p.driver
	i.source == p.source
}

right_device_source(i, p) if {
	p.driver in {"", "scsi"}
	i.driver == "scsi"
	regex.match(`^[0-9]+:[0-9]+$`, i.source)
}

right_device_source(i, p) if {
	p.driver in {"", "blk"}
	i.driver == "blk"
	regex.match(`^[0-9a-f]{2}(/[0-9a-f]{2})?$`, i.source)
}

right_mount_point(i, p, _) if {
	i.driver in {"blk", "scsi"}
	p.disk
	i.mount_point == disk_mount_point(i)
}

right_mount_point(i, p, pod) if {
	p.mount_point != ""
	right_mount_source(i.mount_point, p.at, pod)
}

# The Kata generator does not say which volume a storage is for.
right_volume(_, p, _) if not p.volume

right_volume(i, p, disks) if i.source == disks[p.volume]

# --- disks of volumes ------------------------------------------------------

# The disk that is mounted as each volume: one for each, the same in all containers and at all times.
right_disks(t) := {volume: disk | some [volume, disk] in shown} if {
	shown := {[volume, disk_of(m.source)] |
		some m in input.OCI.Mounts
		volume := t.volume_at[m.destination]
	}
	known := shown | {[volume, data.pstate[concat("", ["volume:", volume])].disk] | some volume in volumes_on_disks}
	conflicting_disks := {text |
		some one in shown
		some other in known
		conflict(one, other)
		text := sprintf("%s is disk %s, and %s is disk %s", array.concat(one, other))
	}
	conflicting_disks == set()
}

# Disks are told apart by the bus and the place on it, which their directory is named after.
disk_of(source) := base64url.decode(split(trim_prefix(source, concat("", [common.spath, "/"])), "/")[0])

conflict(one, other) if {
	one[0] == other[0]
	one[1] != other[1]
}

conflict(one, other) if {
	one[0] != other[0]
	one[1] == other[1]
}

keep(disks) := [{"op": "add", "path": concat("", ["/pstate/volume:", pointer(volume)]), "value": {"disk": disk, "uses": uses + 1}} |
	some volume, disk in disks
	uses := object.get(data.pstate, [concat("", ["volume:", volume]), "uses"], 0)
]

# --- layers ----------------------------------------------------------------

is_lower(s) if {
	"X-kata.multi-layer=true" in s.options
	not is_upper(s)
}

is_upper(s) if "X-kata.overlay-upper" in s.options

# Each declared layer once, all in partitions of a disk or each on one.
right_layers(layers, t) if {
	count(layers) == t.layer_count
	every i in layers {
		right_layer(i, t)
	}
	places := {o | some i in layers; some o in i.options; t.layers[o]}
	count(places) == count(layers)
	count({split(o, "=")[0] | some o in places}) == min([1, count(layers)])
}

# A layer is bound by the root of its tree, by where that begins, and by its place among the layers. The host says where it
# finds the disk, and may say again what the tree's own header says.
right_layer(i, t) if {
	count({split(o, "=")[0] | some o in i.options}) == count(i.options)
	some o in i.options
	p := t.layers[o]
	i.driver in {"blk", "scsi", "mmioblk", "nvdimm", "local"}
	i.fstype == p.fstype
	i.driver_options == p.driver_options
	i.fs_group == p.fs_group
	i.shared == object.get(p, "shared", false)
	regex.match(p.mount_point, concat("$(bundle-id)", split(i.mount_point, input.container_id)))
	not contains(i.mount_point, "$(")
	given := {x | some x in i.options}
	p.options - given == set()
	count(roots_of(p)) == 1
	every x in (given - p.options) {
		regex.match(`^X-kata\.dmverity\.(hashoffset=[0-9]+|no-superblock=(true|false)|salt=[0-9a-f]{2,128})$`, x)
	}
}

roots_of(s) := {o | some o in s.options; startswith(o, "X-kata.dmverity.roothash=")}

# What a container writes over its layers is in the guest's memory, or on one disk of the host that the guest encrypts with a key
# of its own. Nobody declares it: without it the container has the same files, and with it the host learns no more of them.
right_uppers(uppers, _, _) if count(uppers) == 0

right_uppers(uppers, layers, disks) if {
	count(uppers) == 1
	count(layers) > 0
	right_upper(uppers[0], layers[0].mount_point)
	count([s | some s in input.storages; s.source == uppers[0].source]) == 1
	taken := {d | some d in disks} | {data.pstate[concat("", ["volume:", volume])].disk | some volume in volumes_on_disks}
	not uppers[0].source in taken
}

right_upper(i, root) if {
	i.fstype == "ext4"
	sort(i.options) == ["X-kata.multi-layer=true", "X-kata.overlay-upper"]
	sort(i.driver_options) == ["create_filesystem", "encryption_key=ephemeral"]
	is_null(i.fs_group)
	i.shared == false
	i.mount_point == root
	right_device_source(i, {"driver": ""})
}

# Disks without encryption, and devices, show the host what is on them. The guest asks about each one once more, and only a
# policy that declares such a thing says yes.
open_storages contains {"fstype": s.fstype, "options": s.options, "driver_options": s.driver_options} if {
	some c in containers
	some s in c.storages
	s.driver in {"", "blk", "scsi"}
	not "encryption_key=ephemeral" in s.driver_options
}

open_devices contains d.container_path if {
	some c in containers
	some d in c.devices
}

HostStorageRequest if open_storages[{"fstype": input.fstype, "options": input.options, "driver_options": input.driver_options}]

HostStorageRequest if open_devices[input.container_path]

# --- devices ---------------------------------------------------------------

vfio_prefix := object.get(object.get(object.get(policy_data, "devices", {}), "vfio", {}), "device_path", "/dev/vfio/devices/vfio")

is_vfio(d) if startswith(d.container_path, vfio_prefix)

right_devices(i, p, annotations) if {
	every d in i {
		right_device(d, p)
	}
	count({d.container_path | some d in i}) == count(i)
	plugged := {trim_prefix(d.container_path, vfio_prefix) | some d in i; is_vfio(d)}
	declared := [d | some d in p.devices; d.container_path == vfio_prefix]
	named := {trim_prefix(key, "cdi.k8s.io/vfio") | some key, _ in annotations; startswith(key, "cdi.k8s.io/vfio")}
	right_vfio(plugged, declared, named)
}

# Plugged while the pod runs: each is named by an annotation. From the start: the annotations alone tell.
right_vfio(plugged, declared, named) if {
	count(plugged) > 0
	plugged == named
	count(declared) == count(plugged)
}

right_vfio(plugged, declared, named) if {
	count(plugged) == 0
	count(named) == count(declared)
}

right_device(d, p) if {
	not is_vfio(d)
	some declared in p.devices
	d.container_path == declared.container_path
}

right_device(d, p) if {
	is_vfio(d)
	number := trim_prefix(d.container_path, vfio_prefix)
	regex.match(`^[0-9]+$`, number)
	d.id == concat("", ["vfio", number])
	some declared in p.devices
	declared.container_path == vfio_prefix
	d.type_ == declared.type_
	d.vm_path == declared.vm_path
	count(d.options) > 0
	every o in d.options {
		regex.match(`^[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]=[0-9a-fA-F]{2}/[0-9a-fA-F]{2}$`, o)
	}
}

# --- life ------------------------------------------------------------------

# The entry of a container that was created and not removed.
known(id) := data.pstate[concat("", ["container:", id])].index

StartContainerRequest := {"allowed": true, "ops": [{
	"op": "add",
	"path": sprintf("/pstate/started:%d", [index]),
	"value": input.container_id,
}]} if {
	index := known(input.container_id)
	data.pstate[sprintf("live:%d", [index])] == input.container_id
	not data.pstate[sprintf("started:%d", [index])]
}

# Not a request: the guest says so itself when the first process of a container has ended.
ContainerExited := {"allowed": true, "ops": ops} if {
	index := known(input.container_id)
	data.pstate[sprintf("started:%d", [index])] == input.container_id
	ops := array.concat(
		[
			{"op": "remove", "path": sprintf("/pstate/started:%d", [index])},
			{"op": "remove", "path": sprintf("/pstate/live:%d", [index])},
		],
		[{"op": "add", "path": sprintf("/pstate/finished:%d", [index]), "value": true} | input.status == 0],
	)
}

# One that was killed before its start can not be started any more, and so never counts as one that runs.
ContainerExited := {"allowed": true, "ops": [{"op": "remove", "path": sprintf("/pstate/live:%d", [index])}]} if {
	index := known(input.container_id)
	data.pstate[sprintf("live:%d", [index])] == input.container_id
	not data.pstate[sprintf("started:%d", [index])]
}

default removed := 0

removed := data.pstate.removed

# What the host can add to the state without a container is bounded. The ids of containers that were there do not count: a pod may restart
# them for months.
room if count(data.pstate) - removed < 4096

# Removing a container retires its id and forgets its volumes.
RemoveContainerRequest := {"allowed": true, "ops": ops} if {
	id := input.container_id
	c := data.pstate[concat("", ["container:", id])]
	ops := array.concat(
		[
			{"op": "remove", "path": concat("", ["/pstate/container:", id])},
			{"op": "add", "path": concat("", ["/pstate/retired:", id]), "value": true},
			{"op": "add", "path": "/pstate/removed", "value": removed + 1},
		],
		array.concat(
			[{"op": "remove", "path": path} |
				some kind in ["live", "started"]
				data.pstate[sprintf("%s:%d", [kind, c.index])] == id
				path := sprintf("/pstate/%s:%d", [kind, c.index])
			],
			[{"op": "remove", "path": concat("", ["/pstate/", kind, pointer(root)])} |
				some root in c.roots
				some kind in ["tree:", "closed:"]
				data.pstate[concat("", [kind, root])]
			],
		),
	)
}

# Once more, and as often as it takes: the guest may have failed to remove the container, or have made it in the meantime. Nobody else gets its id.
RemoveContainerRequest if data.pstate[concat("", ["retired:", input.container_id])]

# Removing an id that was never admitted does nothing but retire it, so that a teardown after a refused create does not
# hang. Their number is bounded.
RemoveContainerRequest := {"allowed": true, "ops": [{
	"op": "add",
	"path": concat("", ["/pstate/retired:", input.container_id]),
	"value": true,
}]} if {
	not data.pstate[concat("", ["container:", input.container_id])]
	not data.pstate[concat("", ["retired:", input.container_id])]
	regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{1,127}$`, input.container_id)
	room
}

WaitProcessRequest if {
	is_number(known(input.container_id))
	process_id(input.exec_id)
}

StatsContainerRequest if is_number(known(input.container_id))

SignalProcessRequest if {
	index := known(input.container_id)
	process_id(input.exec_id)
	input.signal in object.get(containers[index], "signals", [input.signal])
	input.signal in object.get(defaults, "SignalProcessRequest", [input.signal])
}

# --- processes and streams -------------------------------------------------

process_id("") := true

process_id(exec_id) if regex.match(process_pattern, exec_id)

process_pattern := `^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`

ExecProcessRequest if {
	created := data.pstate[concat("", ["container:", input.container_id])]
	p := containers[created.index]
	exec_command(input.process, p)
	is_null(input.string_user)
	regex.match(process_pattern, input.exec_id)
	input.exec_id != input.container_id
	ports_allowed(input)
	input.process.SelinuxLabel == ""
	input.process.ApparmorProfile == ""
	input.process.User.Username == ""
	right_identity(input.process, p.OCI.Process, table[created.index])
	right_exec_env(input.process.Env, created)
	no_capabilities(input.process.Capabilities)
}

# As the container was created with, or as it could have been.
right_exec_env(i, created) if i == created.env

right_exec_env(i, created) if right_env(i, table[created.index], data.pstate.pinned)

exec_command(i, _) if i.Args in defaults.ExecProcessRequest.allowed_commands

exec_command(i, p) if {
	i.Args in p.exec_commands
	i.Terminal == p.OCI.Process.Terminal
}

exec_command(i, _) if {
	some pattern in defaults.ExecProcessRequest.regex
	regex.match(pattern, concat(" ", i.Args))
}

# None named: the runtime then gives those of the container.
no_capabilities(i) if is_null(i)

no_capabilities(i) if {
	every name in capability_names {
		count(i[name]) == 0
	}
}

ReadStreamRequest if {
	defaults.ReadStreamRequest
	known(input.container_id) >= 0
	process_id(input.exec_id)
}

WriteStreamRequest if {
	defaults.WriteStreamRequest
	known(input.container_id) >= 0
	process_id(input.exec_id)
}

CloseStdinRequest if {
	defaults.CloseStdinRequest
	known(input.container_id) >= 0
	process_id(input.exec_id)
}

TtyWinResizeRequest if {
	known(input.container_id) >= 0
	process_id(input.exec_id)
}

GetDiagnosticDataRequest if defaults.GetDiagnosticDataRequest

UpdateEphemeralMountsRequest if defaults.UpdateEphemeralMountsRequest

PortForwardRequest if input.port in object.get(object.get(defaults, "PortForwardRequest", {}), "allowed_ports", [])

# --- signed fragments ------------------------------------------------------

# The engine defines this anew with the fragments that it has verified and that the rule below has admitted: in the order
# of their arrival, never removed. So a container keeps its place among all containers.
default fragments_loaded := []

declared_fragments := object.get(policy_data, "fragments", [])

LoadPolicyFragmentRequest if {
	declared := [d | some d in declared_fragments; d.issuer == input.issuer; d.feed == input.feed]
	count(declared) > 0
	input.svn >= max([d.minimum_svn | some d in declared])
	fragment_in_date(declared)
	every f in fragments_loaded {
		fragment_newer(f)
	}
}

fragment_in_date(_) if not input.expired

fragment_in_date(declared) if {
	every d in declared {
		object.get(d, "allow_expired", false) == true
	}
}

fragment_newer(f) if f.feed != input.feed

fragment_newer(f) if f.issuer != input.issuer

fragment_newer(f) if f.svn < input.svn

# No container is created before the fragments that the policy cannot do without are there.
fragments_ready if {
	every d in declared_fragments {
		fragment_ready(d)
	}
}

fragment_ready(d) if object.get(d, "required", false) == false

fragment_ready(d) if {
	some f in fragments_loaded
	f.issuer == d.issuer
	f.feed == d.feed
}

# --- files -----------------------------------------------------------------

pointer(text) := replace(replace(text, "~", "~0"), "/", "~1")

# Path of a copied file: the volume, the last element of its destination, and what is below it. Names may have line breaks.
volume_pattern := concat("", [
	"(?s)^(", trim_prefix(replace(with_paths(common.sfprefix), `\$\(bundle-id\)`, "[a-z0-9]{64}"), "^"), "([^/]+))(?:/(.+))?$",
])

free_paths := concat("|", [concat("", ["(?:", filled, ")"]) |
	some pattern in defaults.CopyFileRequest
	filled := replace(with_paths(pattern), `\$\(bundle-id\)`, "[a-z0-9]{64}")
])

# Volumes whose content is known, by the last element of their destination.
bound_files[base] contains f if {
	object.get(ours, "bind_files", true)
	some t in table
	some f in t.files
	base := f.base
}

# Last elements that belong to a volume of unknown content as well.
mixed_bases contains base if {
	some index, t in table
	bound := {f.destination | some f in t.files}
	some destination, list in t.mounts_at
	not destination in bound
	some m in list
	contains(m.source, "$(sfprefix)")
	parts := split(destination, "/")
	base := parts[count(parts) - 1]
}

# What no rule below may do.
proper_path(path) if {
	not contains(path, "/../")
	not endswith(path, "/..")
	not contains(path, "/./")
	not contains(path, "//")
}

# A volume of known content: the declared files, where kubelet puts them, each path once, before a container uses it.
CopyFileRequest := {"allowed": true, "ops": ops} if {
	bound_base
	proper_path(input.path)
	root := volume.root
	below := volume.below
	content := declared_content(volume.base, below)
	volume_in_use := object.get(data.pstate, concat("", ["closed:", root]), false)
	volume_in_use == false
	tree := object.get(data.pstate, concat("", ["tree:", root]), {})
	stays(tree, below, content)
	not below_a_link(tree, below)
	count(tree) < 4096
	room
	ops := [{"op": "add", "path": concat("", ["/pstate/tree:", pointer(root)]), "value": object.union(tree, {below: content})}]
}

stays(tree, below, content) if object.get(tree, below, content) == content

# Where files change, the kubelet may publish them again before the container is there, which finds what the link leads to then.
stays(tree, "..data", content) if {
	startswith(content, "link:")
	startswith(tree["..data"], "link:")
	every f in bound_files[volume.base] {
		f.free
	}
}

# A volume that is bound in part follows the kubelet while a container uses it. What is known stays as it is: a new version
# shows when it has all of that.
CopyFileRequest := {"allowed": true, "ops": ops} if {
	bound_base
	root := volume.root
	mounts := data.pstate[concat("", ["closed:", root])]
	mounts.files
	proper_path(input.path)
	below := volume.below
	tree := data.pstate[concat("", ["tree:", root])]
	content := declared_content(volume.base, below)
	not below_a_link(tree, below)
	count(tree) < 4096
	every destination in mounts.files {
		some f in table[mounts.index].files
		f.destination == destination
		belongs(f, below, content)
		follows(f, tree, below, content)
	}
	ops := [{"op": "add", "path": concat("", ["/pstate/tree:", pointer(root)]), "value": followed(tree, below, content)}]
}

# With other files than those of unknown content nothing is exchanged.
follows(_, tree, below, content) if object.get(tree, below, content) == content

follows(_, tree, below, content) if {
	regular(content)
	regular(tree[below])
}

follows(f, tree, "..data", content) if {
	version := trim_prefix(content, "link:")
	every path, entry in f.entries {
		tree[concat("/", [version, path])] == concat("", ["sha256:", entry.sha256])
	}
}

# Versions that the link does not lead to are forgotten: before it leads to one again, all of it has to be copied again.
followed(tree, below, content) := object.union(tree, {below: content}) if below != "..data"

followed(tree, "..data", content) := object.union(
	{path: what |
		some path, what in tree
		shown_by(trim_prefix(content, "link:"), split(path, "/")[0])
	},
	{"..data": content},
)

shown_by(version, version)

shown_by(_, first) if not startswith(first, "..")

# What is written through a link would be recorded at another place than where it is.
below_a_link(tree, below) if {
	parts := split(below, "/")
	count(parts) > 1
	startswith(tree[parts[0]], "link:")
}

# Where a path is in a volume, whatever version of it.
place_of(below) := regex.replace(below, `^\.\.[^/]+/`, "")

# Checks stand in the order in which a denial shall name them: the one that comes furthest is told.
declared_content(base, below) := concat("", ["sha256:", input.data_sha256]) if {
	input.file_type == "Regular"
	bits.and(input.file_mode, 3584) == 0
	known_content(base, below)
}

declared_content(base, below) := "free" if {
	input.file_type == "Regular"
	some f in partly_bound[base]
	not below_known(f, place_of(below))
	bits.and(input.file_mode, 3584) == 0
	not known_content(base, below)
	free_file(f, place_of(below))
}

# Those of them that take files of unknown content, too.
partly_bound[base] contains f if {
	some base, list in bound_files
	some f in list
	f.free
}

known_content(base, below) if {
	some f in bound_files[base]
	f.entries[place_of(below)].sha256 == input.data_sha256
}

# A file of a source that is not known takes no place of a known one, nor hides it.
free_file(f, path) if {
	path in f.free.paths
	not touches_known(f, path)
}

free_file(f, path) if {
	f.free.any
	path != ""
	not startswith(path, "..")
	not touches_known(f, path)
}

touches_known(f, path) if below_known(f, path)

touches_known(f, path) if {
	some key, _ in f.entries
	startswith(key, concat("", [path, "/"]))
}

below_known(f, path) if f.entries[path]

below_known(f, path) if {
	some key, _ in f.entries
	startswith(path, concat("", [key, "/"]))
}

regular("free") := true

regular(content) if startswith(content, "sha256:")

declared_content(base, below) := "directory" if {
	input.file_type == "Directory"
	some f in bound_files[base]
	not f.single
	proper_directory(f, below)
}

declared_content(base, below) := concat("", ["link:", input.symlink_target]) if {
	input.file_type == "Symlink"
	some f in bound_files[base]
	not f.single
	proper_link(f, below, input.symlink_target)
	not replaces_files(below)
}

# A link takes the place of a directory with all that was copied into it.
replaces_files(below) if {
	some path, _ in data.pstate[concat("", ["tree:", volume.root])]
	startswith(path, concat("", [below, "/"]))
}

proper_directory(_, "") := true

proper_directory(_, below) if regex.match(`^\.\.[^/]+$`, below)

proper_directory(f, below) if {
	prefix := concat("", [place_of(below), "/"])
	some key, _ in f.entries
	startswith(key, prefix)
}

proper_directory(f, below) if {
	path := place_of(below)
	some key in f.free.paths
	startswith(key, concat("", [path, "/"]))
	not below_known(f, path)
}

proper_directory(f, below) if {
	path := place_of(below)
	f.free.any
	not startswith(path, "..")
	not below_known(f, path)
}

proper_link(_, "..data", target) if {
	regex.match(`^\.\.[^/]+$`, target)
	target != "..data"
}

proper_link(f, below, target) if {
	target == concat("", ["..data/", below])
	some key, _ in f.entries
	split(key, "/")[0] == below
}

proper_link(f, below, target) if {
	target == concat("", ["..data/", below])
	some key in f.free.paths
	split(key, "/")[0] == below
}

proper_link(f, below, target) if {
	f.free.any
	target == concat("", ["..data/", below])
	regex.match(`^[^/]+$`, below)
	not startswith(below, "..")
}

# Other volumes: below the shared directory, links that stay inside.
CopyFileRequest := {"allowed": true, "ops": ops} if {
	ops := free_volume
	proper_path(input.path)
	free_paths != ""
	regex.match(free_paths, input.path)
	free_type(input.file_type)
}

free_volume := [] if not bound_base

# The same name stands for a volume of known content elsewhere. The container will tell which one it is.
free_volume := [{"op": "add", "path": concat("", ["/pstate/tree:", pointer(volume.root)]), "value": {"": "unbound"}}] if {
	bound_base
	mixed_bases[volume.base]
	not declared_content(volume.base, volume.below)
	not data.pstate[concat("", ["closed:", volume.root])]
	room
}

bound_base if bound_files[volume.base]

# The volume that a copied file belongs to. The guest takes a slash at the end for nothing, and so must this.
volume := {"root": place[1], "base": place[count(place) - 2], "below": place[count(place) - 1]} if {
	count(bound_files) > 0
	place := regex.find_all_string_submatch_n(volume_pattern, trim_suffix(input.path, "/"), 1)[0]
}

free_type("Regular") := true

free_type("Directory") := true

free_type("Symlink") if {
	regex.match(concat("", ["(?:", free_paths, ").*/.+"]), input.path)
	not startswith(input.symlink_target, "/")
	not ".." in split(input.symlink_target, "/")
}

# The volumes of known content that this container mounts, each of them complete.
volumes(t) := [root |
	some f in t.files
	some m in input.OCI.Mounts
	m.destination == f.destination
	root := m.source
] if {
	every f in t.files {
		complete(f)
	}
}

# How a volume is kept that a container uses from now on.
closed(index, t, root) := {"index": index, "files": {f.destination | some f in mounted_from(t, root)}} if not whole(t, root)

closed(_, t, root) := true if whole(t, root)

whole(t, root) if {
	some f in mounted_from(t, root)
	f.bound
}

mounted_from(t, root) := {f |
	some f in t.files
	some m in input.OCI.Mounts
	m.destination == f.destination
	m.source == root
}

complete(f) if not mounted(f)

complete(f) if {
	some m in input.OCI.Mounts
	m.destination == f.destination
	tree := data.pstate[concat("", ["tree:", m.source])]
	every path, content in f.entries {
		shows(tree, path, content.sha256)
	}
	object.get(tree, "", "directory") != "unbound"
	nothing_else(f, tree)
}

# Files are copied before it is known which of the volumes with this last element they are for. If these differ, what was
# copied for one must not show up in another.
nothing_else(f, _) if f.alone

nothing_else(f, tree) if {
	not f.alone
	surplus := {path | some path, content in tree; not belongs(f, path, content)}
	surplus == set()
}

belongs(f, path, content) if content == concat("", ["sha256:", f.entries[place_of(path)].sha256])

belongs(f, path, content) if {
	regular(content)
	free_file(f, place_of(path))
}

belongs(f, path, "directory") if {
	not f.single
	proper_directory(f, path)
}

belongs(f, path, content) if {
	not f.single
	startswith(content, "link:")
	proper_link(f, path, trim_prefix(content, "link:"))
}

mounted(f) if {
	some m in input.OCI.Mounts
	m.destination == f.destination
}

shows(tree, path, sum) if tree[path] == concat("", ["sha256:", sum])

shows(tree, path, sum) if {
	first := split(path, "/")[0]
	tree[first] == concat("", ["link:..data/", first])
	startswith(tree["..data"], "link:")
	version := trim_prefix(tree["..data"], "link:")
	tree[concat("/", [version, path])] == concat("", ["sha256:", sum])
}

# A sealed secret is opened where the author has put this very text: the host can bring others, and read some files and variables.
UnsealFileRequest if {
	some f in containers[known(input.container_id)].files
	f.destination == input.destination
	f.entries[place_of(input.name)].sha256 == input.sha256
}

UnsealVariableRequest if input.variable in table[known(input.container_id)].env

# --- network ---------------------------------------------------------------

UpdateInterfaceRequest if {
	p := defaults.UpdateInterfaceRequest
	i := input.interface
	bits.and(i.raw_flags, bits.negate(p.allow_raw_flags)) == 0
	not i.name in p.forbidden_names
	not i.device in p.forbidden_names
	not lower(i.hwAddr) in p.forbidden_hw_addrs
	every a in i.IPAddresses {
		not matches_any(a.address, object.get(p, "forbidden_addresses_regex", []))
		matches_any(a.address, object.get(p, "allowed_addresses_regex", [""]))
	}
}

UpdateRoutesRequest if {
	p := defaults.UpdateRoutesRequest
	every r in input.routes.Routes {
		not r.device in p.forbidden_device_names
		not matches_any(r.source, p.forbidden_source_regex)
		not matches_any(r.dest, object.get(p, "forbidden_dest_regex", p.forbidden_source_regex))
		matches_any(r.dest, object.get(p, "allowed_dest_regex", [""]))
		matches_any(r.gateway, object.get(p, "allowed_gateway_regex", [""]))
	}
}

AddARPNeighborsRequest if {
	p := defaults.AddARPNeighborsRequest
	every n in input.neighbors.ARPNeighbors {
		not n.device in p.forbidden_device_names
		n.toIPAddress.mask == ""
		not matches_any(n.toIPAddress.address, p.forbidden_cidrs_regex)
		n.state in p.allowed_states
		bits.or(n.flags, 136) == 136
	}
}

matches_any(text, patterns) if {
	some pattern in patterns
	regex.match(pattern, text)
}
