package aci

// Group is the containers that run together in one virtual machine, from a template or from a pod.
type Group struct {
	Name       string
	Containers []Container // init containers first
	// Pod says that the group is a pod on virtual nodes, to which the service adds other mounts and variables.
	Pod bool

	ccePolicy place
}

// Container is one container as its user wants it. What it leaves out comes from its image.
type Container struct {
	Name  string
	Image string
	// Entrypoint and Args replace those of the image as Kubernetes does. A container of a template has an entrypoint only.
	Entrypoint, Args []string
	WorkingDir       string
	Env              []Variable
	Mounts           []Mount
	Exec             [][]string // commands of probes and hooks
	Security         Security
}

// Variable is one environment variable.
type Variable struct {
	Name string
	// Value is a literal value; or, with Pattern, an RE2 expression that matches whole values.
	Value   string
	Pattern bool
}

// Mount is a volume in a container.
type Mount struct {
	Kind     string // azureFile, emptyDir, secret or gitRepo
	Path     string
	ReadOnly bool
}

// Security is the security context of a container. Nil leaves a choice to the image or to the service.
type Security struct {
	User, Group         *int64
	Privileged          bool
	NoNewPrivileges     bool
	CapAdd, CapDrop     []string
	SeccompSHA256       string // of the profile as the guest measures it; empty: no profile
	WorkloadIdentityPod bool   // the pod has the label of workload identities, which adds a mount and variables
}
