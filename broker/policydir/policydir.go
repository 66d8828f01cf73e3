// Package policydir takes the broker's policies from a folder, so that they can be kept in version control.
//
// The folder holds resource.rego and attestation/<id>.rego. All files are read and compiled together: they take the place of the
// earlier set as one, or, when one of them is at fault, not at all. While the folder is the source, policies cannot be set over the
// API: the next look at the folder would undo it. For what the folder lacks, the broker's own default policies hold. A running broker
// does not go back to them: a volume that is not mounted any more looks like an empty folder, and must not open what a policy closed.
package policydir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/reload"
)

// ErrReadOnly refuses a policy that is set while the folder is the source. It wraps rego.ErrPolicy, so that it counts as the
// request's fault.
var ErrReadOnly = fmt.Errorf("policies come from a folder of this broker (policies.directory), change them there: %w", rego.ErrPolicy)

const (
	suffix         = ".rego"
	resourceName   = "resource"
	attestationDir = "attestation"
	maxPolicies    = 1000
)

// Config is the section [policies].
type Config struct {
	// Directory is the folder; nothing means that policies are kept in the store and set over the API.
	Directory string `toml:"directory"`
}

// Directory is an open folder.
type Directory struct {
	path       string
	resourceID string
	value      *reload.Value[policies]
}

// policies are compiled policies by file name without suffix, "resource" or "attestation/<id>".
type policies map[string]*rego.Policy

// Open reads the folder; a policy that does not compile is an error. resourceID is the id under which resource.rego is asked for.
func Open(ctx context.Context, path, resourceID string) (*Directory, error) {
	d := &Directory{path: path, resourceID: resourceID}
	var err error
	var before policies // rounds of reading come one after the other
	d.value, err = reload.NewValue(ctx, func(ctx context.Context) (policies, error) {
		fresh, err := read(ctx, path)
		if err == nil {
			err = before.gone(fresh, path)
		}
		if err != nil {
			return nil, err
		}
		before = fresh
		return fresh, nil
	})
	return d, err
}

// gone refuses policies that lack the resource policy, or all attestation policies, that were there before.
func (p policies) gone(fresh policies, path string) error {
	attests := func(p policies) bool {
		for name := range p {
			if strings.HasPrefix(name, attestationDir+"/") {
				return true
			}
		}
		return false
	}
	what := ""
	switch {
	case p[resourceName] != nil && fresh[resourceName] == nil:
		what = resourceName + suffix
	case attests(p) && !attests(fresh):
		what = "all of " + attestationDir
	default:
		return nil
	}
	return fmt.Errorf("reading policies of %s: %s has gone, and the broker's own defaults may let more guests in; hint: if that is meant, "+
		"restart the broker", path, what)
}

// Item is what reads the folder again.
func (d *Directory) Item() reload.Item {
	return reload.Item{What: "policies", Files: []string{d.path}, Load: d.value.Reload}
}

// Attestation is the set of attestation policies.
func (d *Directory) Attestation() *Set {
	return &Set{dir: d, defaults: map[string]*rego.Policy{}, file: func(id string) string { return attestationDir + "/" + id }}
}

// Resource is the set of the one resource policy.
func (d *Directory) Resource() *Set {
	return &Set{dir: d, defaults: map[string]*rego.Policy{}, file: func(id string) string {
		if id == d.resourceID {
			return resourceName
		}
		return ""
	}}
}

// read compiles all policies of a folder and reports every fault.
func read(ctx context.Context, path string) (policies, error) {
	out := policies{}
	var faults []error
	text, err := readFile(filepath.Join(path, resourceName+suffix))
	switch {
	case err == nil:
		out[resourceName], err = rego.Compile(resourceName, text)
		faults = append(faults, err)
	case !errors.Is(err, fs.ErrNotExist):
		faults = append(faults, err)
	default:
		// Without the folder itself there is no telling what it would hold.
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("reading policies: %w", err)
		}
	}
	list, err := os.ReadDir(filepath.Join(path, attestationDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		faults = append(faults, err)
	}
	for _, e := range list {
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || strings.HasPrefix(id, ".") {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(out) >= maxPolicies {
			return nil, fmt.Errorf("reading policies: %s holds more than %d", path, maxPolicies)
		}
		text, err := readFile(filepath.Join(path, attestationDir, e.Name()))
		if err == nil {
			err = rego.ValidID(id)
		}
		if err == nil {
			out[attestationDir+"/"+id], err = rego.Compile(id, text)
		}
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("reading policies of %s: %w", path, err)
	}
	return out, nil
}

func readFile(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, rego.MaxText+1))
	return string(text), err
}

// Set is one family of policies. It takes the place of a rego.Set.
type Set struct {
	dir  *Directory
	file func(id string) string

	mu       sync.RWMutex
	defaults map[string]*rego.Policy
}

// Get returns a policy of the folder, or else the default of that id, or an error that wraps rego.ErrUnknown.
func (s *Set) Get(_ context.Context, id string) (*rego.Policy, error) {
	if p, ok := s.dir.value.Get()[s.file(id)]; ok {
		return p, nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if p, ok := s.defaults[id]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("policy %q: %w", id, rego.ErrUnknown)
}

// Put refuses.
func (s *Set) Put(_ context.Context, id, _ string) error {
	return fmt.Errorf("policy %.64q is not set: %w", id, ErrReadOnly)
}

// PutDefault gives the policy that holds while the folder has none of that id.
func (s *Set) PutDefault(_ context.Context, id, text string) error {
	p, err := rego.Compile(id, text)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.defaults[id] = p
	return nil
}

// Text returns the text of a policy, or an error that wraps rego.ErrUnknown.
func (s *Set) Text(ctx context.Context, id string) (string, error) {
	p, err := s.Get(ctx, id)
	if err != nil {
		return "", err
	}
	return p.Text(), nil
}

// IDs lists the policies, in order.
func (s *Set) IDs(context.Context) ([]string, error) {
	s.mu.RLock()
	ids := slices.Collect(maps.Keys(s.defaults))
	s.mu.RUnlock()
	for name := range s.dir.value.Get() {
		if id, ok := strings.CutPrefix(name, attestationDir+"/"); ok && s.file(id) == name {
			ids = append(ids, id)
		}
	}
	if _, ok := s.dir.value.Get()[s.file(s.dir.resourceID)]; ok && s.file(s.dir.resourceID) == resourceName {
		ids = append(ids, s.dir.resourceID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
