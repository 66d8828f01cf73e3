package kubernetes

// The structs are the part of the Kubernetes API that reaches the guest; see decoder for the tags.

// Metadata names an object.
type Metadata struct {
	Name         string            `k:"name"`
	GenerateName string            `k:"generateName"`
	Namespace    string            `k:"namespace"`
	Labels       map[string]string `k:"labels"`
	Annotations  map[string]string `k:"annotations"`
	_            struct{}          `accept:"uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds ownerReferences finalizers managedFields selfLink"`
}

// podObject is a Pod around its metadata and its spec.
type podObject struct {
	_ struct{} `accept:"apiVersion kind metadata spec status"`
}

// PodSpec is the specification of a pod.
type PodSpec struct {
	At
	Containers            []Container `k:"containers"`
	InitContainers        []Container `k:"initContainers"`
	Volumes               []Volume    `k:"volumes"`
	SecurityContext       PodSecurity `k:"securityContext"`
	HostNetwork           bool        `k:"hostNetwork"`
	ShareProcessNamespace bool        `k:"shareProcessNamespace"`
	RuntimeClassName      string      `k:"runtimeClassName"`
	RestartPolicy         string      `k:"restartPolicy"`
	ServiceAccountName    string      `k:"serviceAccountName"`
	ServiceAccount        string      `k:"serviceAccount"`
	NodeName              string      `k:"nodeName"`
	Hostname              string      `k:"hostname"`
	GracePeriodSeconds    *int64      `k:"terminationGracePeriodSeconds"`
	EnableServiceLinks    *bool       `k:"enableServiceLinks"`
	AutomountToken        *bool       `k:"automountServiceAccountToken"`

	_ struct{} `accept:"nodeSelector affinity tolerations topologySpreadConstraints imagePullSecrets subdomain setHostnameAsFQDN dnsConfig dnsPolicy hostAliases priorityClassName preemptionPolicy priority schedulerName resources activeDeadlineSeconds readinessGates schedulingGates overhead workloadRef hostnameOverride"`
	_ struct{} `refuse:"hostPID=the guest has no access to the host's processes|hostIPC=the guest has no access to the host's IPC|ephemeralContainers=every container must be known to the policy|resourceClaims=devices of claims are not known when the policy is made"`

	HostUsers *bool `k:"hostUsers"`
	OS        OS    `k:"os"`
}

// OS names the operating system that a pod is for.
type OS struct {
	At
	Name string `k:"name"`
}

// PodSecurity applies to all containers of a pod.
type PodSecurity struct {
	At
	RunAsUser                *int64   `k:"runAsUser"`
	RunAsGroup               *int64   `k:"runAsGroup"`
	RunAsNonRoot             *bool    `k:"runAsNonRoot"`
	FSGroup                  *int64   `k:"fsGroup"`
	FSGroupChangePolicy      string   `k:"fsGroupChangePolicy"`
	SupplementalGroups       []int64  `k:"supplementalGroups"`
	SupplementalGroupsPolicy string   `k:"supplementalGroupsPolicy"`
	Sysctls                  []Sysctl `k:"sysctls"`
	AllowPrivilegeEscalation *bool    `k:"allowPrivilegeEscalation"`
	_                        struct{} `accept:"seccompProfile seLinuxOptions appArmorProfile seLinuxChangePolicy" refuse:"windowsOptions=guests are linux"`
}

// Sysctl is one kernel parameter.
type Sysctl struct {
	Name  string   `k:"name"`
	Value Quantity `k:"value"`
}

// Container is one container of a pod.
type Container struct {
	At
	Name                   string        `k:"name"`
	Image                  string        `k:"image"`
	Command                []string      `k:"command"`
	Args                   []string      `k:"args"`
	WorkingDir             string        `k:"workingDir"`
	Env                    []EnvVar      `k:"env"`
	EnvFrom                []EnvFrom     `k:"envFrom"`
	Ports                  []Port        `k:"ports"`
	Resources              Resources     `k:"resources"`
	VolumeMounts           []VolumeMount `k:"volumeMounts"`
	VolumeDevices          []Device      `k:"volumeDevices"`
	Security               Security      `k:"securityContext"`
	LivenessProbe          *Probe        `k:"livenessProbe"`
	ReadinessProbe         *Probe        `k:"readinessProbe"`
	StartupProbe           *Probe        `k:"startupProbe"`
	Lifecycle              Lifecycle     `k:"lifecycle"`
	TTY                    bool          `k:"tty"`
	Stdin                  bool          `k:"stdin"`
	RestartPolicy          string        `k:"restartPolicy"`
	RestartRules           []RestartRule `k:"restartPolicyRules"`
	TerminationMessagePath string        `k:"terminationMessagePath"`
	_                      struct{}      `accept:"stdinOnce imagePullPolicy terminationMessagePolicy resizePolicy"`
}

// RestartRule says what the exit codes of a container do.
type RestartRule struct {
	Action string   `k:"action"`
	_      struct{} `accept:"exitCodes"`
}

// EnvVar is one variable.
type EnvVar struct {
	At
	Name      string    `k:"name"`
	Value     string    `k:"value"`
	ValueFrom *EnvValue `k:"valueFrom"`
}

// EnvValue says where a value comes from.
type EnvValue struct {
	ConfigMap *KeyRef   `k:"configMapKeyRef"`
	Secret    *KeyRef   `k:"secretKeyRef"`
	Field     *FieldRef `k:"fieldRef"`
	Resource  *AnyRef   `k:"resourceFieldRef"`
	_         struct{}  `refuse:"fileKeyRef=the values of files are not known when the policy is made"`
}

// KeyRef names a key of a ConfigMap or Secret.
type KeyRef struct {
	At
	Name     string `k:"name"`
	Key      string `k:"key"`
	Optional bool   `k:"optional"`
}

// FieldRef names a field of the pod.
type FieldRef struct {
	At
	Path string   `k:"fieldPath"`
	_    struct{} `accept:"apiVersion"`
}

// AnyRef is a reference whose content does not matter here.
type AnyRef struct {
	_ struct{} `accept:"*"`
}

// EnvFrom takes all keys of a ConfigMap or Secret.
type EnvFrom struct {
	At
	Prefix    string   `k:"prefix"`
	ConfigMap *NameRef `k:"configMapRef"`
	Secret    *NameRef `k:"secretRef"`
}

// NameRef names an object.
type NameRef struct {
	At
	Name     string `k:"name"`
	Optional bool   `k:"optional"`
}

// Port is a port of a container.
type Port struct {
	ContainerPort int64    `k:"containerPort"`
	_             struct{} `accept:"name protocol hostIP hostPort"`
}

// Resources of a container; only counted devices reach the policy.
type Resources struct {
	Limits   map[string]Quantity `k:"limits"`
	Requests map[string]Quantity `k:"requests"`
	_        struct{}            `refuse:"claims=devices of claims are not known when the policy is made"`
}

// VolumeMount shows a volume in a container.
type VolumeMount struct {
	At
	Name        string   `k:"name"`
	MountPath   string   `k:"mountPath"`
	ReadOnly    bool     `k:"readOnly"`
	Propagation string   `k:"mountPropagation"`
	SubPath     string   `k:"subPath"`
	SubPathExpr string   `k:"subPathExpr"`
	_           struct{} `accept:"recursiveReadOnly"`
}

// Device is a block volume shown as a device.
type Device struct {
	At
	Name string `k:"name"`
	Path string `k:"devicePath"`
}

// Security is the security context of a container.
type Security struct {
	At
	RunAsUser                *int64       `k:"runAsUser"`
	RunAsGroup               *int64       `k:"runAsGroup"`
	RunAsNonRoot             *bool        `k:"runAsNonRoot"`
	ReadOnlyRoot             bool         `k:"readOnlyRootFilesystem"`
	AllowPrivilegeEscalation *bool        `k:"allowPrivilegeEscalation"`
	Privileged               bool         `k:"privileged"`
	Capabilities             Capabilities `k:"capabilities"`
	ProcMount                string       `k:"procMount"`
	_                        struct{}     `accept:"seccompProfile seLinuxOptions appArmorProfile" refuse:"windowsOptions=guests are linux"`
}

// Capabilities added and dropped.
type Capabilities struct {
	Add  []string `k:"add"`
	Drop []string `k:"drop"`
}

// Probe of a container; only commands reach the guest.
type Probe struct {
	Exec *Exec    `k:"exec"`
	_    struct{} `accept:"httpGet tcpSocket grpc initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold terminationGracePeriodSeconds"`
}

// Exec is a command.
type Exec struct {
	Command []string `k:"command"`
}

// Lifecycle hooks.
type Lifecycle struct {
	PostStart  *Hook  `k:"postStart"`
	PreStop    *Hook  `k:"preStop"`
	StopSignal string `k:"stopSignal"`
}

// Hook is one of them.
type Hook struct {
	Exec *Exec    `k:"exec"`
	_    struct{} `accept:"httpGet tcpSocket sleep"`
}

// Volume of a pod. Exactly one member besides the name is set.
type Volume struct {
	At
	Name      string        `k:"name"`
	EmptyDir  *EmptyDir     `k:"emptyDir"`
	HostPath  *HostPath     `k:"hostPath"`
	Claim     *ClaimRef     `k:"persistentVolumeClaim"`
	ConfigMap *ConfigVolume `k:"configMap"`
	Secret    *SecretVolume `k:"secret"`
	Projected *Projected    `k:"projected"`
	Downward  *AnyRef       `k:"downwardAPI"`
	AzureFile *AnyRef       `k:"azureFile"`
	NFS       *AnyRef       `k:"nfs"`
	CSI       *CSIVolume    `k:"csi"`
	Ephemeral *MadeClaim    `k:"ephemeral"`
	_         struct{}      `refuse:"image=image volumes are not bound by the policy; copy the files into the image|awsElasticBlockStore=use a persistentVolumeClaim|azureDisk=use a persistentVolumeClaim|cephfs=use a persistentVolumeClaim|cinder=use a persistentVolumeClaim|fc=use a persistentVolumeClaim|flexVolume=use a persistentVolumeClaim|flocker=use a persistentVolumeClaim|gcePersistentDisk=use a persistentVolumeClaim|gitRepo=use an init container|glusterfs=use a persistentVolumeClaim|iscsi=use a persistentVolumeClaim|photonPersistentDisk=use a persistentVolumeClaim|portworxVolume=use a persistentVolumeClaim|quobyte=use a persistentVolumeClaim|rbd=use a persistentVolumeClaim|scaleIO=use a persistentVolumeClaim|storageos=use a persistentVolumeClaim|vsphereVolume=use a persistentVolumeClaim"`
}

// EmptyDir is scratch space.
type EmptyDir struct {
	Medium    string   `k:"medium"`
	SizeLimit Quantity `k:"sizeLimit"`
}

// HostPath is a path of the host.
type HostPath struct {
	Path string   `k:"path"`
	_    struct{} `accept:"type"`
}

// ClaimRef names a claim.
type ClaimRef struct {
	Name     string `k:"claimName"`
	ReadOnly bool   `k:"readOnly"`
}

// CSIVolume is one that a driver makes with the pod.
type CSIVolume struct {
	Driver string   `k:"driver"`
	_      struct{} `accept:"*"`
}

// MadeClaim is a claim that is made with the pod.
type MadeClaim struct {
	Template struct {
		Spec ClaimSpec `k:"spec"`
		_    struct{}  `accept:"*"`
	} `k:"volumeClaimTemplate"`
	_ struct{} `accept:"*"`
}

// ConfigVolume shows the keys of a ConfigMap as files.
type ConfigVolume struct {
	At
	Name        string `k:"name"`
	Items       []Item `k:"items"`
	DefaultMode *int64 `k:"defaultMode"`
	Optional    bool   `k:"optional"`
}

// SecretVolume shows the keys of a Secret as files.
type SecretVolume struct {
	At
	Name        string `k:"secretName"`
	Items       []Item `k:"items"`
	DefaultMode *int64 `k:"defaultMode"`
	Optional    bool   `k:"optional"`
}

// Item puts a key at a path.
type Item struct {
	Key  string `k:"key"`
	Path string `k:"path"`
	Mode *int64 `k:"mode"`
}

// Projected shows several sources in one directory.
type Projected struct {
	At
	Sources     []Source `k:"sources"`
	DefaultMode *int64   `k:"defaultMode"`
}

// Source of a projected volume.
type Source struct {
	ConfigMap *ConfigVolume `k:"configMap"`
	Secret    *ProjSecret   `k:"secret"`
	Token     *MadeSource   `k:"serviceAccountToken"`
	Downward  *MadeSource   `k:"downwardAPI"`
	Trust     *MadeSource   `k:"clusterTrustBundle"`
	PodCert   *MadeSource   `k:"podCertificate"`
}

// MadeSource is a source that the cluster makes for the pod; only the places of its files are read.
type MadeSource struct {
	Path       string     `k:"path"`
	Items      []MadeItem `k:"items"` // of the downward API
	KeyPath    string     `k:"keyPath"`
	ChainPath  string     `k:"certificateChainPath"`
	BundlePath string     `k:"credentialBundlePath"`
	_          struct{}   `accept:"*"`
}

// MadeItem is one file of the downward API.
type MadeItem struct {
	Path string   `k:"path"`
	_    struct{} `accept:"*"`
}

// Paths are those of the files, in no order.
func (m *MadeSource) Paths() []string {
	var out []string
	for _, p := range []string{m.Path, m.KeyPath, m.ChainPath, m.BundlePath} {
		if p != "" {
			out = append(out, p)
		}
	}
	for _, it := range m.Items {
		out = append(out, it.Path)
	}
	return out
}

// ProjSecret is a Secret as the source of a projected volume.
type ProjSecret struct {
	At
	Name     string `k:"name"`
	Items    []Item `k:"items"`
	Optional bool   `k:"optional"`
}

// ConfigMap holds configuration.
type ConfigMap struct {
	Metadata   Metadata          `k:"metadata"`
	Data       map[string]string `k:"data"`
	BinaryData map[string]string `k:"binaryData"`
	_          struct{}          `accept:"apiVersion kind immutable"`
}

// Secret holds secrets.
type Secret struct {
	Metadata   Metadata          `k:"metadata"`
	Data       map[string]string `k:"data"`
	StringData map[string]string `k:"stringData"`
	_          struct{}          `accept:"apiVersion kind type immutable"`
}

// Claim is a PersistentVolumeClaim.
type Claim struct {
	Metadata Metadata  `k:"metadata"`
	Spec     ClaimSpec `k:"spec"`
	_        struct{}  `accept:"*"`
}

// ClaimSpec says what kind of volume is claimed.
type ClaimSpec struct {
	VolumeMode   string   `k:"volumeMode"`
	StorageClass string   `k:"storageClassName"`
	_            struct{} `accept:"*"`
}
