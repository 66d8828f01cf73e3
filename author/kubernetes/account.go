package kubernetes

import "go.yaml.in/yaml/v3"

// addServiceAccount keeps what a ServiceAccount says about tokens. Nothing else of it reaches a pod's containers.
func (s *Set) addServiceAccount(n *yaml.Node) {
	if value := text(n, "automountServiceAccountToken"); value == "true" || value == "false" {
		on, meta := value == "true", child(n, "metadata")
		s.tokens[text(meta, "namespace")+"/"+text(meta, "name")] = &on
	}
}

// MountsToken says whether Kubernetes gives the containers of w a token of its service account: the pod decides, then the account, if
// it was read, then it does.
func (s *Set) MountsToken(w *Workload) bool {
	if w.Spec.AutomountToken != nil {
		return *w.Spec.AutomountToken
	}
	account := "default"
	for _, name := range []string{w.Spec.ServiceAccount, w.Spec.ServiceAccountName} {
		if name != "" {
			account = name
		}
	}
	if on := lookup(s.tokens, w, account); on != nil {
		return *on
	}
	return true
}
