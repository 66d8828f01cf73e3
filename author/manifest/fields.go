package manifest

import "strings"

// fields judges the fields of a pod: what `cloister run` has no use for. See kubernetes.Options.
func fields(path string) (refused, ignored string) {
	if rest, ok := strings.CutPrefix(path, "spec.initContainers[]"); ok {
		path = "spec.containers[]" + rest
	}
	if probe := container + "livenessProbe"; !strings.HasPrefix(path, probe) {
		for _, other := range []string{"readinessProbe", "startupProbe"} {
			path = strings.Replace(path, container+other, probe, 1)
		}
	}
	path = strings.Replace(path, container+"lifecycle.preStop", container+"lifecycle.postStart", 1)
	if kind, ok := strings.CutPrefix(path, "spec.volumes[]."); ok && !strings.Contains(kind, ".") {
		return volumeKind(kind), ""
	}
	return refusedFields[path], ignoredFields[path]
}

const container = "spec.containers[]."

// refusedFields are errors when they are set. Of containers, probes and hooks those of the first kind stand for all.
var refusedFields = map[string]string{
	"spec.hostNetwork":           "a guest has no access to the host's network namespace",
	"spec.hostPID":               "a guest has no access to the host's processes",
	"spec.hostIPC":               "a guest has no access to the host's IPC",
	"spec.hostUsers":             "user namespaces are not supported",
	"spec.hostAliases":           "/etc/hosts cannot be extended yet",
	"spec.hostnameOverride":      "use hostname",
	"spec.dnsConfig":             "the resolver of the guest cannot be changed yet",
	"spec.subdomain":             "there is no cluster DNS",
	"spec.setHostnameAsFQDN":     "there is no cluster DNS",
	"spec.ephemeralContainers":   "every container must be known to the policy",
	"spec.activeDeadlineSeconds": "deadlines are not enforced",
	"spec.readinessGates":        "there is no cluster to report to",
	"spec.overhead":              "the overhead of the guest is computed",
	"spec.resources":             "give the resources of each container",
	"spec.resourceClaims":        "devices are not supported",
	"spec.os":                    "guests are linux",

	"spec.securityContext.fsGroupChangePolicy":      "volumes are new in each guest",
	"spec.securityContext.supplementalGroupsPolicy": "groups that the image lists are never added",
	"spec.securityContext.allowPrivilegeEscalation": "set it in each container",
	"spec.securityContext.seLinuxOptions":           "the guest has no SELinux",
	"spec.securityContext.seLinuxChangePolicy":      "the guest has no SELinux",
	"spec.securityContext.appArmorProfile":          "the guest has no AppArmor",
	"spec.securityContext.windowsOptions":           "guests are linux",

	container + "restartPolicy":      "sidecar containers are not supported",
	container + "restartPolicyRules": "containers are restarted as the pod says",
	container + "volumeDevices":      "block devices are not supported",
	container + "resizePolicy":       "resources are fixed by the policy",
	container + "resources.claims":   "devices are not supported",

	container + "env[].valueFrom.resourceFieldRef": "resource fields are not supported as a source",
	container + "env[].valueFrom.fileKeyRef":       "files are not supported as a source",

	container + "volumeMounts[].subPath":           "mount the whole volume and use a path below it",
	container + "volumeMounts[].subPathExpr":       "mount the whole volume and use a path below it",
	container + "volumeMounts[].mountPropagation":  "mounts are always private",
	container + "volumeMounts[].recursiveReadOnly": "readOnly mounts have nothing mounted below",

	container + "securityContext.privileged":      "add the capabilities that the container needs",
	container + "securityContext.procMount":       "masked paths cannot be changed",
	container + "securityContext.seLinuxOptions":  "the guest has no SELinux",
	container + "securityContext.appArmorProfile": "the guest has no AppArmor",
	container + "securityContext.windowsOptions":  "guests are linux",

	container + "lifecycle.stopSignal":          "the stop signal of the image is used",
	container + "lifecycle.postStart.httpGet":   "hooks are commands",
	container + "lifecycle.postStart.tcpSocket": "hooks are commands",
	container + "lifecycle.postStart.sleep":     "hooks are commands",
}

// ignoredFields give warnings when they are set.
var ignoredFields = map[string]string{
	"spec.nodeSelector":              "there is one node",
	"spec.nodeName":                  "there is one node",
	"spec.affinity":                  "there is one node",
	"spec.tolerations":               "there is one node",
	"spec.topologySpreadConstraints": "there is one node",
	"spec.priorityClassName":         "there is no scheduler",
	"spec.preemptionPolicy":          "there is no scheduler",
	"spec.priority":                  "there is no scheduler",
	"spec.schedulerName":             "there is no scheduler",
	"spec.schedulingGates":           "there is no scheduler",
	"spec.workloadRef":               "there is no scheduler",
	"spec.dnsPolicy":                 "the guest uses the resolver of its virtual machine",
	"spec.imagePullSecrets":          "images are pulled in the guest with credentials from the broker",

	"spec.securityContext.seccompProfile":        "the guest applies no seccomp profile",
	container + "securityContext.seccompProfile": "the guest applies no seccomp profile",

	container + "terminationMessagePath":   "termination messages are not collected",
	container + "terminationMessagePolicy": "termination messages are not collected",
	container + "ports[].hostPort":         "the host does not forward ports into the guest",
	container + "ports[].hostIP":           "the host does not forward ports into the guest",

	container + "livenessProbe.httpGet":   "probes are not run",
	container + "livenessProbe.tcpSocket": "probes are not run",
	container + "livenessProbe.grpc":      "probes are not run",
}

// volumeKind says why a kind of volume is refused; empty if it is not.
func volumeKind(kind string) string {
	switch kind {
	case "hostPath":
		return "a guest has no access to the host's files"
	case "persistentVolumeClaim", "ephemeral":
		return "persistent volumes are not supported yet"
	case "projected":
		return "use configMap and secret volumes"
	case "downwardAPI":
		return "use env with fieldRef"
	case "csi":
		return "CSI volumes are not supported"
	case "image":
		return "image volumes are not supported"
	case "gitRepo":
		return "use an init container"
	case "nfs", "iscsi", "cephfs", "glusterfs", "rbd", "fc", "flocker", "quobyte", "scaleIO", "storageos", "cinder", "flexVolume",
		"portworxVolume", "photonPersistentDisk", "vsphereVolume", "awsElasticBlockStore", "azureDisk", "azureFile", "gcePersistentDisk":
		return "network volumes are not supported"
	}
	return ""
}
