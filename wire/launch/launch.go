// Package launch is the contract between who describes a pod and who starts it: a
// plan lists the requests that a host sends to the pod's guest, in order and in
// full. The author derives the guest's policy from the same plan, so a host that
// follows it is allowed everything it does, and nothing else.
//
// A plan holds no secret and no decision: the host is not trusted with either.
package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

const (
	// APIVersion is the only version of a plan.
	APIVersion = "cloister/launch/v1"

	maxPlanSize   = 64 << 20
	maxContainers = 256
)

// Restart policies of a container.
const (
	RestartAlways    = "Always"
	RestartOnFailure = "OnFailure"
	RestartNever     = "Never"
)

// Plan is what a host does to start a pod: create the sandbox, send the files,
// then create and start the containers in order.
type Plan struct {
	APIVersion string
	Name       string
	Namespace  string
	Hostname   string
	Sandbox    *agent.CreateSandboxRequest
	Files      []File
	Containers []Container
	Resources  Resources
}

// Resources is the size of the pod's machine.
type Resources struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memoryMiB"`
}

// File is a file that the guest gets before its containers are created.
type File struct {
	Request *agent.CopyFileRequest
}

// Container is one container. An Init container must end with status 0 before the
// next container is created.
type Container struct {
	Name          string
	Init          bool
	Image         string
	TTY           bool
	Stdin         bool
	Create        *agent.CreateContainerRequest
	RestartPolicy string
}

// Parse reads and checks a plan.
func Parse(text []byte) (*Plan, error) {
	if len(text) > maxPlanSize {
		return nil, fmt.Errorf("reading the launch plan: %d bytes exceed the limit of %d", len(text), maxPlanSize)
	}
	var p Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("reading the launch plan: %w", err)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &p, nil
}

// Marshal writes the plan as Parse reads it. Equal plans give equal bytes.
func (p *Plan) Marshal() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("writing the launch plan: %w", err)
	}
	return b.Bytes(), nil
}

// Validate reports everything that makes a plan impossible to follow.
func (p *Plan) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.APIVersion != APIVersion {
		fault("apiVersion is %q, expected %q", p.APIVersion, APIVersion)
	}
	if p.Name == "" {
		fault("name is missing")
	}
	if p.Sandbox == nil {
		fault("sandbox is missing")
	}
	if p.Resources.VCPUs < 0 || p.Resources.MemoryMiB < 0 {
		fault("resources are negative")
	}
	if n := len(p.Containers); n == 0 || n > maxContainers {
		fault("%d containers, expected 1 to %d", n, maxContainers)
	}
	for i, f := range p.Files {
		if f.Request.GetPath() == "" {
			fault("file %d has no path", i)
		}
	}
	names, ids := map[string]bool{}, map[string]bool{}
	for i, c := range p.Containers {
		if c.Name == "" || names[c.Name] {
			fault("container %d: name %q is empty or used twice", i, c.Name)
		}
		names[c.Name] = true
		switch c.RestartPolicy {
		case "", RestartAlways, RestartOnFailure, RestartNever:
		default:
			fault("container %q: restart policy is %q", c.Name, c.RestartPolicy)
		}
		id := c.Create.GetContainerId()
		if id == "" || ids[id] {
			fault("container %q: container_id %q is empty or used twice", c.Name, id)
		}
		ids[id] = true
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking the launch plan: %w", err)
	}
	return nil
}

// planJSON, fileJSON and containerJSON are the text forms: protobuf messages are
// written by protojson with the names of their .proto files.
type planJSON struct {
	APIVersion string          `json:"apiVersion"`
	Name       string          `json:"name"`
	Namespace  string          `json:"namespace,omitempty"`
	Hostname   string          `json:"hostname,omitempty"`
	Sandbox    json.RawMessage `json:"sandbox,omitempty"`
	Files      []File          `json:"files,omitempty"`
	Containers []Container     `json:"containers"`
	Resources  Resources       `json:"resources"`
}

type fileJSON struct {
	Request json.RawMessage `json:"request,omitempty"`
}

type containerJSON struct {
	Name          string          `json:"name"`
	Init          bool            `json:"init,omitempty"`
	Image         string          `json:"image,omitempty"`
	TTY           bool            `json:"tty,omitempty"`
	Stdin         bool            `json:"stdin,omitempty"`
	Create        json.RawMessage `json:"create,omitempty"`
	RestartPolicy string          `json:"restartPolicy,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (p Plan) MarshalJSON() ([]byte, error) {
	sandbox, err := fromProto(p.Sandbox)
	if err != nil {
		return nil, err
	}
	return marshal(planJSON{p.APIVersion, p.Name, p.Namespace, p.Hostname, sandbox, p.Files, p.Containers, p.Resources})
}

// UnmarshalJSON implements json.Unmarshaler. Unknown members are errors.
func (p *Plan) UnmarshalJSON(text []byte) error {
	var j planJSON
	if err := strict(text, &j); err != nil {
		return err
	}
	sandbox, err := toProto(j.Sandbox, &agent.CreateSandboxRequest{})
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	*p = Plan{j.APIVersion, j.Name, j.Namespace, j.Hostname, sandbox, j.Files, j.Containers, j.Resources}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (f File) MarshalJSON() ([]byte, error) {
	request, err := fromProto(f.Request)
	if err != nil {
		return nil, err
	}
	return marshal(fileJSON{request})
}

// UnmarshalJSON implements json.Unmarshaler. Unknown members are errors.
func (f *File) UnmarshalJSON(text []byte) error {
	var j fileJSON
	if err := strict(text, &j); err != nil {
		return err
	}
	request, err := toProto(j.Request, &agent.CopyFileRequest{})
	if err != nil {
		return fmt.Errorf("file: %w", err)
	}
	*f = File{request}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (c Container) MarshalJSON() ([]byte, error) {
	create, err := fromProto(c.Create)
	if err != nil {
		return nil, err
	}
	return marshal(containerJSON{c.Name, c.Init, c.Image, c.TTY, c.Stdin, create, c.RestartPolicy})
}

// UnmarshalJSON implements json.Unmarshaler. Unknown members are errors.
func (c *Container) UnmarshalJSON(text []byte) error {
	var j containerJSON
	if err := strict(text, &j); err != nil {
		return err
	}
	create, err := toProto(j.Create, &agent.CreateContainerRequest{})
	if err != nil {
		return fmt.Errorf("container %q: %w", j.Name, err)
	}
	*c = Container{j.Name, j.Init, j.Image, j.TTY, j.Stdin, create, j.RestartPolicy}
	return nil
}

// marshal leaves "<", ">" and "&" readable.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func strict(text []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text follows the object")
	}
	return nil
}

// fromProto leaves an absent message out. encoding/json removes the white space
// that protojson varies on purpose.
func fromProto(m proto.Message) (json.RawMessage, error) {
	if !m.ProtoReflect().IsValid() {
		return nil, nil
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
}

func toProto[M proto.Message](text json.RawMessage, into M) (M, error) {
	var none M
	if len(text) == 0 || string(text) == "null" {
		return none, nil
	}
	if err := protojson.Unmarshal(text, into); err != nil {
		return none, err
	}
	return into, nil
}
