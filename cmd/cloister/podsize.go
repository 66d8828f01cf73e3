package main

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/host/sizing"
)

// podSize is what counts of a pod for its virtual machine. Unlike `cloister run`, it takes any pod, also one that needs a cluster.
type podSize struct {
	object      string // what makes the pod, "Deployment/web"
	annotations map[string]string
	request     sizing.Request
}

// sizeFields leaves out what has no part in a pod's size, see kubernetes.Options.
func sizeFields(path string) (refused, ignored string) {
	if rest, ok := strings.CutPrefix(path, "spec.initContainers"); ok {
		path = "spec.containers" + rest
	}
	switch path {
	case "spec.containers", "spec.containers[].name", "spec.containers[].restartPolicy", "spec.containers[].resources",
		"spec.containers[].resources.limits", "spec.containers[].resources.requests":
		return "", ""
	}
	return "", "it does not change the size"
}

// readPods reads what makes pods in a file, with the fields that count for the size.
func readPods(file string) ([]*kubernetes.Workload, error) {
	inputs, err := kubernetes.Read(nil, file)
	if err != nil {
		return nil, err
	}
	set, err := kubernetes.Parse(inputs, nil, kubernetes.Options{Fields: sizeFields})
	return set.Workloads, err
}

// readPodSizes reads every object with containers in a manifest. There is at least one.
func readPodSizes(file string) ([]podSize, error) {
	pods, err := readPods(file)
	if err != nil {
		return nil, err
	}
	var found []podSize
	for _, w := range pods {
		if len(w.Spec.Containers) == 0 {
			continue
		}
		object := printable(w.Object())
		request, err := podRequest(&w.Spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, object, err)
		}
		found = append(found, podSize{object, w.Template.Annotations, request})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no pod with containers", file)
	}
	return found, nil
}

// readPodSize is readPodSizes of a file with one pod.
func readPodSize(file string) (podSize, error) {
	pods, err := readPodSizes(file)
	if err != nil {
		return podSize{}, err
	}
	if len(pods) > 1 {
		return podSize{}, hint(fmt.Errorf("%s makes %d pods, the first two of %s and %s", file, len(pods), pods[0].object, pods[1].object), "give a file with one of them")
	}
	return pods[0], nil
}

// podRequest is what a pod needs at once, as Kubernetes counts: the containers together with the sidecars, and each container of the
// start with the sidecars before it.
func podRequest(p *kubernetes.PodSpec) (sizing.Request, error) {
	var sidecars, starts []sizing.Request
	for _, c := range p.InitContainers {
		r, err := containerRequest(&c)
		if err != nil {
			return sizing.Request{}, err
		}
		if c.RestartPolicy == "Always" {
			sidecars = append(sidecars, r)
			r = sizing.Request{}
		}
		with := append([]sizing.Request{}, sidecars...)
		if r != (sizing.Request{}) {
			with = append(with, r)
		}
		sum, err := sizing.Sum("pod", with...)
		if err != nil {
			return sizing.Request{}, err
		}
		starts = append(starts, sum)
	}
	all := sidecars
	for _, c := range p.Containers {
		r, err := containerRequest(&c)
		if err != nil {
			return sizing.Request{}, err
		}
		all = append(all, r)
	}
	total, err := sizing.Sum("pod", all...)
	for _, s := range starts {
		if s.CPULimit == 0 && s.CPURequest == 0 && s.MemoryLimit == 0 && s.MemoryRequest == 0 {
			continue // says nothing, and so asks for nothing
		}
		total = total.Max(s)
	}
	return total, err
}

func containerRequest(c *kubernetes.Container) (sizing.Request, error) {
	r := sizing.Request{Source: "container " + printable(c.Name)}
	var errs []error
	for _, x := range []struct {
		from  map[string]kubernetes.Quantity
		what  string
		name  string
		parse func(kubernetes.Quantity) (int64, error)
		to    *int64
	}{
		{c.Resources.Limits, "limits", "cpu", kubernetes.Quantity.Milli, &r.CPULimit},
		{c.Resources.Limits, "limits", "memory", kubernetes.Quantity.Bytes, &r.MemoryLimit},
		{c.Resources.Requests, "requests", "cpu", kubernetes.Quantity.Milli, &r.CPURequest},
		{c.Resources.Requests, "requests", "memory", kubernetes.Quantity.Bytes, &r.MemoryRequest},
	} {
		text, there := x.from[x.name]
		if !there {
			continue
		}
		n, err := x.parse(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %s.%s: %w", printable(c.Name), x.what, x.name, err))
			continue
		}
		*x.to = n
	}
	return r, errors.Join(errs...)
}

// readAnnotations reads names and values in YAML or JSON, or takes them from a pod.
func readAnnotations(file string) (map[string]string, error) {
	inputs, err := kubernetes.Read(nil, file)
	if err != nil {
		return nil, err
	}
	var doc map[string]yaml.Node
	if err := yaml.Unmarshal(inputs[0].Data, &doc); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if len(doc) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	if _, manifest := doc["metadata"]; manifest {
		pods, err := readPods(file)
		if err == nil && len(pods) == 0 {
			err = fmt.Errorf("%s has no pod", file)
		}
		if err != nil {
			return nil, err
		}
		return pods[0].Template.Annotations, nil
	}
	out := map[string]string{}
	for name, node := range doc {
		if node.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("%s:%d: annotation %s is not a text", file, node.Line, printable(name))
		}
		out[name] = node.Value
	}
	return out, nil
}
