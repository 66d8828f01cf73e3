package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/author/manifest"
	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/wire/launch"
)

// podFlags say how to read a pod: the same for run, policy and initdata, because all three must come to the same plan.
type podFlags struct {
	configs       []string
	insecure      []string
	guestRegistry []string
}

func (f *podFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.configs, "config-file", nil, "more YAML with ConfigMaps and Secrets (repeatable)")
	addInsecureRegistry(c, &f.insecure)
	c.Flags().StringArrayVar(&f.guestRegistry, "guest-registry", nil, "HOST=GUEST: the registry HOST is called GUEST inside the guest (repeatable)")
}

func addInsecureRegistry(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "insecure-registry", nil, "reach this registry by plain HTTP; digests are checked all the same (repeatable)")
}

// parsePod reads and checks a manifest, and prints its warnings.
func (f *podFlags) parsePod(a *app, file string) (*manifest.Manifest, error) {
	inputs, err := kubernetes.Read(a.stdin, append([]string{file}, f.configs...)...)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(inputs...)
	if err != nil {
		return nil, err
	}
	for _, w := range m.Warnings {
		fmt.Fprintf(a.stderr, "warning: %s\n", w)
	}
	return m, nil
}

// plan reads a pod and works out what the host has to ask of the guest.
func (f *podFlags) plan(ctx context.Context, a *app, file string) (*launch.Plan, error) {
	_, plan, err := f.podAndPlan(ctx, a, file)
	return plan, err
}

func (f *podFlags) podAndPlan(ctx context.Context, a *app, file string) (*manifest.Manifest, *launch.Plan, error) {
	m, err := f.parsePod(a, file)
	if err != nil {
		return nil, nil, err
	}
	names, err := f.guestNames()
	if err != nil {
		return nil, nil, err
	}
	plan, err := manifest.Plan(ctx, m, &manifest.RegistryResolver{InsecureHosts: f.insecure, GuestHosts: names})
	var plain *manifest.PlainHTTPError
	if errors.As(err, &plain) {
		return nil, nil, hint(err, "allow it by --insecure-registry %s", plain.Host)
	}
	if err != nil {
		return nil, nil, err
	}
	return m, plan, nil
}

// guestNames are the registries that have another name inside the guest.
func (f *podFlags) guestNames() (map[string]string, error) {
	names := map[string]string{}
	for _, pair := range f.guestRegistry {
		host, guest, ok := strings.Cut(pair, "=")
		if !ok || host == "" || guest == "" {
			return nil, usageError{fmt.Errorf("--guest-registry %q: want HOST=GUEST", pair)}
		}
		names[host] = guest
	}
	return names, nil
}

// registries are the insecure registries as the guest knows them.
func (f *podFlags) registries() ([]policy.Registry, error) {
	names, err := f.guestNames()
	if err != nil {
		return nil, err
	}
	var out []policy.Registry
	for _, host := range f.insecure {
		if guest, ok := names[host]; ok {
			host = guest
		}
		out = append(out, policy.Registry{Host: host, Insecure: true})
	}
	return out, nil
}
