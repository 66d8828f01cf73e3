package manifest

// The structs below are the part of the Kubernetes API that Cloister honours.
// Tags: `k` names the YAML field; `unsupported` makes a set field an error with
// that text; `ignored` accepts any value and gives a warning with that text.

// Pod is a pod manifest.
type Pod struct {
	APIVersion string   `k:"apiVersion"`
	Kind       string   `k:"kind"`
	Metadata   Metadata `k:"metadata"`
	Spec       PodSpec  `k:"spec"`
	Status     any      `k:"status" quiet:"true"`

	pos positions
}

// Metadata names an object.
type Metadata struct {
	Name        string            `k:"name"`
	Namespace   string            `k:"namespace"`
	Labels      map[string]string `k:"labels"`
	Annotations map[string]string `k:"annotations"`
	Created     any               `k:"creationTimestamp" quiet:"true"`
	UID         any               `k:"uid" quiet:"true"`
}

// PodSpec is the specification of a pod.
type PodSpec struct {
	Containers                    []Container        `k:"containers"`
	InitContainers                []Container        `k:"initContainers"`
	Volumes                       []Volume           `k:"volumes"`
	SecurityContext               PodSecurityContext `k:"securityContext"`
	RestartPolicy                 string             `k:"restartPolicy"`
	Hostname                      string             `k:"hostname"`
	ShareProcessNamespace         bool               `k:"shareProcessNamespace"`
	TerminationGracePeriodSeconds *int64             `k:"terminationGracePeriodSeconds"`
	ServiceAccountName            string             `k:"serviceAccountName"`
	AutomountServiceAccountToken  any                `k:"automountServiceAccountToken" quiet:"true"`
	EnableServiceLinks            any                `k:"enableServiceLinks" quiet:"true"`
	RuntimeClassName              any                `k:"runtimeClassName" quiet:"true"`

	NodeSelector         any `k:"nodeSelector" ignored:"there is one node"`
	NodeName             any `k:"nodeName" ignored:"there is one node"`
	Affinity             any `k:"affinity" ignored:"there is one node"`
	Tolerations          any `k:"tolerations" ignored:"there is one node"`
	TopologySpread       any `k:"topologySpreadConstraints" ignored:"there is one node"`
	PriorityClassName    any `k:"priorityClassName" ignored:"there is no scheduler"`
	PreemptionPolicy     any `k:"preemptionPolicy" ignored:"there is no scheduler"`
	Priority             any `k:"priority" ignored:"there is no scheduler"`
	SchedulerName        any `k:"schedulerName" ignored:"there is no scheduler"`
	DNSPolicy            any `k:"dnsPolicy" ignored:"the guest uses the resolver of its virtual machine"`
	ImagePullSecrets     any `k:"imagePullSecrets" ignored:"images are pulled in the guest with credentials from the broker"`
	ServiceAccountLegacy any `k:"serviceAccount" quiet:"true"`

	HostNetwork           any `k:"hostNetwork" unsupported:"a guest has no access to the host's network namespace"`
	HostPID               any `k:"hostPID" unsupported:"a guest has no access to the host's processes"`
	HostIPC               any `k:"hostIPC" unsupported:"a guest has no access to the host's IPC"`
	HostUsers             any `k:"hostUsers" unsupported:"user namespaces are not supported"`
	HostAliases           any `k:"hostAliases" unsupported:"/etc/hosts cannot be extended yet"`
	DNSConfig             any `k:"dnsConfig" unsupported:"the resolver of the guest cannot be changed yet"`
	Subdomain             any `k:"subdomain" unsupported:"there is no cluster DNS"`
	EphemeralContainers   any `k:"ephemeralContainers" unsupported:"every container must be known to the policy"`
	ActiveDeadlineSeconds any `k:"activeDeadlineSeconds" unsupported:"deadlines are not enforced"`
	ReadinessGates        any `k:"readinessGates" unsupported:"there is no cluster to report to"`
	Overhead              any `k:"overhead" unsupported:"the overhead of the guest is computed"`
	ResourceClaims        any `k:"resourceClaims" unsupported:"devices are not supported"`
	OS                    any `k:"os" unsupported:"guests are linux"`
	SetHostnameAsFQDN     any `k:"setHostnameAsFQDN" unsupported:"there is no cluster DNS"`
}

// PodSecurityContext applies to all containers.
type PodSecurityContext struct {
	RunAsUser          *int64   `k:"runAsUser"`
	RunAsGroup         *int64   `k:"runAsGroup"`
	RunAsNonRoot       *bool    `k:"runAsNonRoot"`
	FSGroup            *int64   `k:"fsGroup"`
	SupplementalGroups []int64  `k:"supplementalGroups"`
	Sysctls            []Sysctl `k:"sysctls"`
	SeccompProfile     any      `k:"seccompProfile" ignored:"the guest applies no seccomp profile"`

	FSGroupChangePolicy any `k:"fsGroupChangePolicy" unsupported:"volumes are new in each guest"`
	SELinuxOptions      any `k:"seLinuxOptions" unsupported:"the guest has no SELinux"`
	AppArmorProfile     any `k:"appArmorProfile" unsupported:"the guest has no AppArmor"`
	WindowsOptions      any `k:"windowsOptions" unsupported:"guests are linux"`
}

// Sysctl is one kernel parameter.
type Sysctl struct {
	Name  string `k:"name"`
	Value string `k:"value"`
}

// Container is one container of a pod.
type Container struct {
	Name            string          `k:"name"`
	Image           string          `k:"image"`
	Command         []string        `k:"command"`
	Args            []string        `k:"args"`
	WorkingDir      string          `k:"workingDir"`
	Env             []EnvVar        `k:"env"`
	EnvFrom         []EnvFrom       `k:"envFrom"`
	Resources       Resources       `k:"resources"`
	VolumeMounts    []VolumeMount   `k:"volumeMounts"`
	SecurityContext SecurityContext `k:"securityContext"`
	LivenessProbe   *Probe          `k:"livenessProbe"`
	ReadinessProbe  *Probe          `k:"readinessProbe"`
	StartupProbe    *Probe          `k:"startupProbe"`
	Lifecycle       *Lifecycle      `k:"lifecycle"`
	TTY             bool            `k:"tty"`
	Stdin           bool            `k:"stdin"`
	StdinOnce       any             `k:"stdinOnce" quiet:"true"`

	Ports                    []ContainerPort `k:"ports"`
	ImagePullPolicy          any             `k:"imagePullPolicy" quiet:"true"`
	TerminationMessagePath   any             `k:"terminationMessagePath" ignored:"termination messages are not collected"`
	TerminationMessagePolicy any             `k:"terminationMessagePolicy" ignored:"termination messages are not collected"`

	RestartPolicy any `k:"restartPolicy" unsupported:"sidecar containers are not supported"`
	VolumeDevices any `k:"volumeDevices" unsupported:"block devices are not supported"`
	ResizePolicy  any `k:"resizePolicy" unsupported:"resources are fixed by the policy"`
}

// ContainerPort says on which port a container listens, which nobody has to know: the ports of a guest are those of its containers.
type ContainerPort struct {
	Name          any `k:"name" quiet:"true"`
	ContainerPort any `k:"containerPort" quiet:"true"`
	Protocol      any `k:"protocol" quiet:"true"`
	HostPort      any `k:"hostPort" ignored:"the host does not forward ports into the guest"`
	HostIP        any `k:"hostIP" ignored:"the host does not forward ports into the guest"`
}

// EnvVar is one environment variable.
type EnvVar struct {
	Name      string     `k:"name"`
	Value     string     `k:"value"`
	ValueFrom *EnvSource `k:"valueFrom"`
}

// EnvSource says where a value comes from.
type EnvSource struct {
	ConfigMapKeyRef  *KeyRef   `k:"configMapKeyRef"`
	SecretKeyRef     *KeyRef   `k:"secretKeyRef"`
	FieldRef         *FieldRef `k:"fieldRef"`
	ResourceFieldRef any       `k:"resourceFieldRef" unsupported:"resource fields are not supported as a source"`
	FileKeyRef       any       `k:"fileKeyRef" unsupported:"files are not supported as a source"`
}

// KeyRef is a key of a ConfigMap or Secret.
type KeyRef struct {
	Name     string `k:"name"`
	Key      string `k:"key"`
	Optional bool   `k:"optional"`
}

// FieldRef is a field of the pod.
type FieldRef struct {
	APIVersion string `k:"apiVersion"`
	FieldPath  string `k:"fieldPath"`
}

// EnvFrom takes all keys of an object.
type EnvFrom struct {
	Prefix       string  `k:"prefix"`
	ConfigMapRef *ObjRef `k:"configMapRef"`
	SecretRef    *ObjRef `k:"secretRef"`
}

// ObjRef names a ConfigMap or Secret.
type ObjRef struct {
	Name     string `k:"name"`
	Optional bool   `k:"optional"`
}

// Resources are limits and requests.
type Resources struct {
	Limits   map[string]quantity `k:"limits"`
	Requests map[string]quantity `k:"requests"`
	Claims   any                 `k:"claims" unsupported:"devices are not supported"`
}

// VolumeMount puts a volume into a container.
type VolumeMount struct {
	Name      string `k:"name"`
	MountPath string `k:"mountPath"`
	ReadOnly  bool   `k:"readOnly"`

	SubPath           any `k:"subPath" unsupported:"mount the whole volume and use a path below it"`
	SubPathExpr       any `k:"subPathExpr" unsupported:"mount the whole volume and use a path below it"`
	MountPropagation  any `k:"mountPropagation" unsupported:"mounts are always private"`
	RecursiveReadOnly any `k:"recursiveReadOnly" unsupported:"readOnly mounts have nothing mounted below"`
}

// SecurityContext applies to one container.
type SecurityContext struct {
	RunAsUser                *int64       `k:"runAsUser"`
	RunAsGroup               *int64       `k:"runAsGroup"`
	RunAsNonRoot             *bool        `k:"runAsNonRoot"`
	ReadOnlyRootFilesystem   bool         `k:"readOnlyRootFilesystem"`
	AllowPrivilegeEscalation *bool        `k:"allowPrivilegeEscalation"`
	Capabilities             Capabilities `k:"capabilities"`
	SeccompProfile           any          `k:"seccompProfile" ignored:"the guest applies no seccomp profile"`

	Privileged      any `k:"privileged" unsupported:"add the capabilities that the container needs"`
	ProcMount       any `k:"procMount" unsupported:"masked paths cannot be changed"`
	SELinuxOptions  any `k:"seLinuxOptions" unsupported:"the guest has no SELinux"`
	AppArmorProfile any `k:"appArmorProfile" unsupported:"the guest has no AppArmor"`
	WindowsOptions  any `k:"windowsOptions" unsupported:"guests are linux"`
}

// Capabilities changes the default set.
type Capabilities struct {
	Add  []string `k:"add"`
	Drop []string `k:"drop"`
}

// Probe is a health check. Only commands matter here: they join the allow-list.
type Probe struct {
	Exec *ExecAction `k:"exec"`

	HTTPGet                       any `k:"httpGet" ignored:"probes are not run"`
	TCPSocket                     any `k:"tcpSocket" ignored:"probes are not run"`
	GRPC                          any `k:"grpc" ignored:"probes are not run"`
	InitialDelaySeconds           any `k:"initialDelaySeconds" quiet:"true"`
	TimeoutSeconds                any `k:"timeoutSeconds" quiet:"true"`
	PeriodSeconds                 any `k:"periodSeconds" quiet:"true"`
	SuccessThreshold              any `k:"successThreshold" quiet:"true"`
	FailureThreshold              any `k:"failureThreshold" quiet:"true"`
	TerminationGracePeriodSeconds any `k:"terminationGracePeriodSeconds" quiet:"true"`
}

// ExecAction is a command.
type ExecAction struct {
	Command []string `k:"command"`
}

// Lifecycle are hooks. Their commands join the allow-list.
type Lifecycle struct {
	PostStart  *Handler `k:"postStart"`
	PreStop    *Handler `k:"preStop"`
	StopSignal any      `k:"stopSignal" unsupported:"the stop signal of the image is used"`
}

// Handler is the action of a hook.
type Handler struct {
	Exec *ExecAction `k:"exec"`

	HTTPGet   any `k:"httpGet" unsupported:"hooks are commands"`
	TCPSocket any `k:"tcpSocket" unsupported:"hooks are commands"`
	Sleep     any `k:"sleep" unsupported:"hooks are commands"`
}

// Volume is a volume of the pod.
type Volume struct {
	Name      string           `k:"name"`
	EmptyDir  *EmptyDir        `k:"emptyDir"`
	ConfigMap *ConfigMapVolume `k:"configMap"`
	Secret    *SecretVolume    `k:"secret"`

	HostPath    any `k:"hostPath" unsupported:"a guest has no access to the host's files"`
	PVC         any `k:"persistentVolumeClaim" unsupported:"persistent volumes are not supported yet"`
	Projected   any `k:"projected" unsupported:"use configMap and secret volumes"`
	DownwardAPI any `k:"downwardAPI" unsupported:"use env with fieldRef"`
	NFS         any `k:"nfs" unsupported:"network volumes are not supported"`
	ISCSI       any `k:"iscsi" unsupported:"network volumes are not supported"`
	CSI         any `k:"csi" unsupported:"CSI volumes are not supported"`
	Ephemeral   any `k:"ephemeral" unsupported:"persistent volumes are not supported yet"`
	Image       any `k:"image" unsupported:"image volumes are not supported"`
}

// EmptyDir is scratch space in the guest's memory.
type EmptyDir struct {
	Medium    string   `k:"medium"`
	SizeLimit quantity `k:"sizeLimit"`
}

// KeyToPath selects one key of an object.
type KeyToPath struct {
	Key  string `k:"key"`
	Path string `k:"path"`
	Mode *int64 `k:"mode"`
}

// ConfigMapVolume shows a ConfigMap as files.
type ConfigMapVolume struct {
	Name        string      `k:"name"`
	Items       []KeyToPath `k:"items"`
	DefaultMode *int64      `k:"defaultMode"`
	Optional    bool        `k:"optional"`
}

// SecretVolume shows a Secret as files.
type SecretVolume struct {
	SecretName  string      `k:"secretName"`
	Items       []KeyToPath `k:"items"`
	DefaultMode *int64      `k:"defaultMode"`
	Optional    bool        `k:"optional"`
}

// ConfigMap is configuration data.
type ConfigMap struct {
	APIVersion string            `k:"apiVersion"`
	Kind       string            `k:"kind"`
	Metadata   Metadata          `k:"metadata"`
	Data       map[string]string `k:"data"`
	BinaryData map[string]string `k:"binaryData"`
	Immutable  any               `k:"immutable" quiet:"true"`
}

// Secret is secret data. The host reads whatever is not sealed.
type Secret struct {
	APIVersion string            `k:"apiVersion"`
	Kind       string            `k:"kind"`
	Metadata   Metadata          `k:"metadata"`
	Type       any               `k:"type" quiet:"true"`
	Data       map[string]string `k:"data"`
	StringData map[string]string `k:"stringData"`
	Immutable  any               `k:"immutable" quiet:"true"`
}
