package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"

	"github.com/cloister/cloister/author/manifest"
	"github.com/cloister/cloister/host/sizing"
)

// maxPodFile bounds manifests that are only looked at for their size, in bytes.
const maxPodFile = 8 << 20

// podSize is what counts of a pod for its virtual machine. Unlike `cloister run`, it takes any pod, also one that needs a cluster.
type podSize struct {
	object      string // what makes the pod, "Deployment/web"
	annotations map[string]string
	request     sizing.Request
}

// sizedContainer is a container as far as its size goes.
type sizedContainer struct {
	Name          string `yaml:"name"`
	RestartPolicy string `yaml:"restartPolicy"`
	Resources     struct {
		Limits   map[string]string `yaml:"limits"`
		Requests map[string]string `yaml:"requests"`
	} `yaml:"resources"`
}

type sizedPod struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name        string            `yaml:"name"`
		Annotations map[string]string `yaml:"annotations"`
	} `yaml:"metadata"`
	Spec struct {
		InitContainers []sizedContainer `yaml:"initContainers"`
		Containers     []sizedContainer `yaml:"containers"`
		Template       *sizedPod        `yaml:"template"`    // of a Deployment, Job and so on
		JobTemplate    *sizedPod        `yaml:"jobTemplate"` // of a CronJob
	} `yaml:"spec"`
	Items []sizedPod `yaml:"items"` // of a List
}

// readPodSizes reads every object with containers in a manifest. There is at least one.
func readPodSizes(file string) ([]podSize, error) {
	docs, err := readYAML[sizedPod](file)
	if err != nil {
		return nil, err
	}
	var found []podSize
	for ; len(docs) > 0; docs = docs[1:] {
		d := docs[0]
		docs = append(docs, d.Items...)
		object := printable(d.Kind + "/" + d.Metadata.Name)
		if d.Spec.JobTemplate != nil {
			d = *d.Spec.JobTemplate
		}
		if d.Spec.Template != nil {
			d = *d.Spec.Template
		}
		if len(d.Spec.Containers) == 0 {
			continue
		}
		request, err := podRequest(d)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, object, err)
		}
		found = append(found, podSize{object, d.Metadata.Annotations, request})
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
func podRequest(p sizedPod) (sizing.Request, error) {
	var sidecars, starts []sizing.Request
	for _, c := range p.Spec.InitContainers {
		r, err := c.request()
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
	for _, c := range p.Spec.Containers {
		r, err := c.request()
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

func (c sizedContainer) request() (sizing.Request, error) {
	r := sizing.Request{Source: "container " + printable(c.Name)}
	var errs []error
	for _, x := range []struct {
		from  map[string]string
		what  string
		name  string
		parse func(string) (int64, error)
		to    *int64
	}{
		{c.Resources.Limits, "limits", "cpu", manifest.Milli, &r.CPULimit}, {c.Resources.Limits, "limits",
			"memory", manifest.Bytes, &r.MemoryLimit},
		{c.Resources.Requests, "requests", "cpu", manifest.Milli, &r.CPURequest},
		{c.Resources.Requests, "requests", "memory", manifest.Bytes, &r.MemoryRequest},
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

// readAnnotations reads names and values, or takes them from a pod.
func readAnnotations(file string) (map[string]string, error) {
	docs, err := readYAML[map[string]yaml.Node](file)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	if _, manifest := docs[0]["metadata"]; manifest {
		p, err := readYAML[sizedPod](file)
		if err != nil {
			return nil, err
		}
		return p[0].Metadata.Annotations, nil
	}
	out := map[string]string{}
	for name, node := range docs[0] {
		if node.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("%s:%d: annotation %s is not a text", file, node.Line, printable(name))
		}
		out[name] = node.Value
	}
	return out, nil
}

// readYAML reads every document of a file.
func readYAML[T any](file string) ([]T, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dec := yaml.NewDecoder(io.LimitReader(f, maxPodFile))
	var out []T
	for {
		var doc T
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		out = append(out, doc)
	}
}
