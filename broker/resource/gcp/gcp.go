// Package gcp serves resources from Google Cloud Secret Manager. It never writes.
//
// Names there are letters, digits, '-' and '_'; package mapping makes them of paths. Versions have numbers, so an older
// one can be asked for.
package gcp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud/google"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/mapping"
	"github.com/cloister/cloister/broker/store"
)

// Config says where the secrets are.
type Config struct {
	// Project is an id or a number.
	Project string `toml:"project_id"`
	// Location is for regional secrets; empty means global ones.
	Location string `toml:"location"`
	google.Config
	Names mapping.Config `toml:"names"`
}

var (
	project  = regexp.MustCompile(`\A[a-z0-9][a-z0-9.:-]{0,62}\z`)
	location = regexp.MustCompile(`\A[a-z][a-z0-9-]{0,62}\z`)
	revision = regexp.MustCompile(`\Aprojects/[^/]+/(?:locations/[^/]+/)?secrets/([^/]+)/versions/([0-9]+)\z`)
)

// Validate reports every fault.
func (c Config) Validate() error {
	errs := []error{c.Config.Validate(), mapping.GCP.Validate(c.Names)}
	if !project.MatchString(c.Project) {
		errs = append(errs, fmt.Errorf("project_id is %.64q, want an id or a number", c.Project))
	}
	if c.Location != "" && !location.MatchString(c.Location) {
		errs = append(errs, fmt.Errorf("location is %.64q, want one like europe-west3", c.Location))
	}
	return errors.Join(errs...)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string { return c.Names.Insecure() }

const (
	// maxAnswer is more than the 64 KiB that Google takes for a secret, in base64.
	maxAnswer   = 1 << 20
	maxVersions = 1000
)

// Backend reads secrets.
type Backend struct {
	cfg    Config
	client *google.Client
	// place is where secrets are, without a slash at its end.
	place string
}

// New makes a Backend. It asks nobody yet.
func New(c Config, now func() time.Time) (*Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	base, place := "https://secretmanager.googleapis.com", "projects/"+c.Project
	if c.Location != "" {
		base, place = "https://secretmanager."+c.Location+".rep.googleapis.com", place+"/locations/"+c.Location
	}
	client, err := google.New(c.Config, base, maxAnswer, now)
	if err != nil {
		return nil, err
	}
	return &Backend{c, client, place + "/secrets"}, nil
}

// Put is refused.
func (b *Backend) Put(context.Context, resource.Path, []byte) error { return resource.ErrReadOnly }

// Delete is refused.
func (b *Backend) Delete(context.Context, resource.Path) error { return resource.ErrReadOnly }

// Get returns a secret, or an error that wraps store.ErrNotFound.
func (b *Backend) Get(ctx context.Context, p resource.Path) ([]byte, error) {
	secret, _, err := b.GetVersion(ctx, p, 0)
	return secret, err
}

// GetVersion returns one version of a secret, 0 being the newest, or an error that wraps store.ErrNotFound.
func (b *Backend) GetVersion(ctx context.Context, p resource.Path, number uint64) ([]byte, resource.Version, error) {
	var none resource.Version
	name, err := b.name(p)
	if err != nil {
		return nil, none, err
	}
	which := "latest"
	if number != 0 {
		which = strconv.FormatUint(number, 10)
	}
	var out struct {
		Name    string
		Payload struct {
			Data     []byte
			Checksum string `json:"dataCrc32c"`
		}
	}
	err = b.client.Call(ctx, http.MethodGet, "/v1/"+b.place+"/"+name+"/versions/"+which+":access", nil, &out)
	if err != nil {
		return nil, none, refused(p, "roles/secretmanager.secretAccessor", err)
	}
	m := revision.FindStringSubmatch(out.Name)
	if m == nil || m[1] != name {
		return nil, none, fmt.Errorf("resource %s: Google sent another secret than %s", p, name)
	}
	got, err := strconv.ParseUint(m[2], 10, 64)
	if err != nil || number != 0 && got != number {
		return nil, none, fmt.Errorf("resource %s: Google sent version %.20s, want %s", p, m[2], which)
	}
	if out.Payload.Checksum != "" && out.Payload.Checksum != google.Checksum(out.Payload.Data) {
		return nil, none, fmt.Errorf("resource %s: its checksum is wrong, it was damaged on the way", p)
	}
	return out.Payload.Data, resource.Version{Number: got, Size: len(out.Payload.Data)}, nil
}

// Versions tells the versions of a resource that can be read, the newest first. Their sizes are not known without reading them.
func (b *Backend) Versions(ctx context.Context, p resource.Path) ([]resource.Version, error) {
	name, err := b.name(p)
	if err != nil {
		return nil, err
	}
	var list []resource.Version
	query := url.Values{"pageSize": {"250"}}
	for len(list) < maxVersions {
		var out struct {
			Versions []struct {
				Name       string
				CreateTime time.Time
				State      string
			}
			Next string `json:"nextPageToken"`
		}
		if err := b.client.Call(ctx, http.MethodGet, "/v1/"+b.place+"/"+name+"/versions?"+query.Encode(), nil, &out); err != nil {
			return nil, refused(p, "roles/secretmanager.viewer", err)
		}
		for _, v := range out.Versions {
			m := revision.FindStringSubmatch(v.Name)
			if m == nil || m[1] != name {
				return nil, fmt.Errorf("resource %s: Google sent versions of another secret than %s", p, name)
			}
			n, err := strconv.ParseUint(m[2], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("resource %s: Google has a version %.20s, want a number", p, m[2])
			}
			if v.State == "ENABLED" {
				list = append(list, resource.Version{Number: n, Time: v.CreateTime.UTC(), Size: -1})
			}
		}
		if out.Next == "" || len(out.Versions) == 0 {
			break
		}
		query.Set("pageToken", out.Next)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("resource %s: %w", p, store.ErrNotFound)
	}
	slices.SortFunc(list, func(a, b resource.Version) int {
		if a.Number > b.Number {
			return -1
		}
		return 1
	})
	return list, nil
}

func (b *Backend) name(p resource.Path) (string, error) {
	name, ok := mapping.GCP.Name(b.cfg.Names, p)
	if !ok {
		return "", fmt.Errorf("resource %s has no name in Google Secret Manager: %w", p, store.ErrNotFound)
	}
	return name, nil
}

func refused(p resource.Path, role string, err error) error {
	switch {
	case google.NotFound(err):
		return fmt.Errorf("resource %s in Google Secret Manager: %w", p, store.ErrNotFound)
	case google.Forbidden(err):
		return fmt.Errorf("resource %s: %w; hint: give the service account %s", p, err, role)
	}
	return fmt.Errorf("resource %s: %w", p, err)
}

// List tells names; see resource.Store.List.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error) {
	return mapping.GCP.List(ctx, b.cfg.Names, b.page, prefix, after, limit)
}

// Count tells how many resources there are.
func (b *Backend) Count(ctx context.Context) (int, error) {
	return mapping.GCP.Count(ctx, b.cfg.Names, b.page)
}

func (b *Backend) page(ctx context.Context, from string) ([]string, string, error) {
	query := url.Values{"pageSize": {"250"}}
	if from != "" {
		query.Set("pageToken", from)
	}
	var out struct {
		Secrets []struct{ Name string }
		Next    string `json:"nextPageToken"`
	}
	if err := b.client.Call(ctx, http.MethodGet, "/v1/"+b.place+"?"+query.Encode(), nil, &out); err != nil {
		return nil, "", err
	}
	var names []string
	for _, s := range out.Secrets {
		names = append(names, s.Name[strings.LastIndexByte(s.Name, '/')+1:])
	}
	return names, out.Next, nil
}
