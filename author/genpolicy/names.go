package genpolicy

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/cloister/cloister/author/kubernetes"
)

// suffix is what the API server makes up for a generated name.
const suffix = "[bcdfghjklmnpqrstvwxz2456789]+"

// maxBase is how much of a name is kept in front of a made-up suffix.
const maxBase = 63 - 5

// objectName is the form of names, and of what names are generated from.
var objectName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// sandboxName is a regular expression, without anchors, of the names that the workload's pods can have.
func sandboxName(w *kubernetes.Workload) (string, error) {
	plain := w.Meta.Name
	base := regexp.QuoteMeta(plain)
	if given := plain + w.Meta.GenerateName; given != "" && !objectName.MatchString(given) {
		return "", fmt.Errorf("%q is no name that Kubernetes takes; if this is a template, fill it in first", given)
	}
	if plain == "" {
		if plain = w.Meta.GenerateName; plain == "" {
			return "", errors.New("metadata.name is missing; pods without a name cannot be told from others")
		}
		base = regexp.QuoteMeta(plain) + suffix
	}
	// generated is base-middle-suffix, of which a long base loses its end.
	generated := func(middle string, longest int) string {
		full := base + middle + "-" + suffix
		if len(plain)+1+longest <= maxBase {
			return full
		}
		cut := min(len(plain), maxBase-1-longest)
		return "(" + full + "|" + regexp.QuoteMeta(plain[:max(cut, 0)]) + "[a-z0-9.-]*" + suffix + ")"
	}
	switch w.Kind {
	case "Deployment":
		return generated("-"+suffix, 11), nil
	case "ReplicaSet", "ReplicationController", "DaemonSet":
		return generated("", 0), nil
	case "StatefulSet":
		return base + "-[0-9]+", nil
	case "Job":
		return generated("(-[0-9]+)?", 6), nil
	case "CronJob":
		return generated("-[0-9]+(-[0-9]+)?", 17), nil
	}
	return base, nil
}
