package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/cloister/cloister/broker/resource"
)

// plainResource has no part that a URL could change the meaning of; how many parts there are to be is the broker's business.
var plainResource = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*\z`)

// resourcePath turns "repository/type/tag" into a URL path.
func resourcePath(path string) (string, error) {
	if !plainResource.MatchString(path) {
		return "", fmt.Errorf("resource path is %.128q: %w", path, resource.ErrPath)
	}
	return "/kbs/v0/resource/" + path, nil
}

// PutResource stores a secret at "repository/type/tag", as the newest version.
func (c *Client) PutResource(ctx context.Context, path string, secret []byte) error {
	p, err := resourcePath(path)
	if err != nil {
		return err
	}
	if _, err := c.call(ctx, http.MethodPost, p, "", secret); err != nil {
		return fmt.Errorf("putting resource %s: %w", path, err)
	}
	return nil
}

// RotateResource lets the broker replace a secret by size random bytes, which nobody but guests gets to see. A size of 0 keeps
// that of today.
func (c *Client) RotateResource(ctx context.Context, path string, size int) (resource.Version, error) {
	var v resource.Version
	p, err := resourcePath(path)
	if err != nil {
		return v, err
	}
	query := "rotate"
	if size != 0 {
		query += "=" + strconv.Itoa(size)
	}
	answer, err := c.call(ctx, http.MethodPost, p, query, nil)
	if err != nil {
		return v, fmt.Errorf("rotating resource %s: %w", path, err)
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		return v, fmt.Errorf("rotating resource %s: reading the answer: %w", path, err)
	}
	if v.Number == 0 { // a broker that takes the empty body for the new secret answers nothing
		return v, fmt.Errorf("rotating resource %s: the broker does not tell the new version", path)
	}
	return v, nil
}

// DeleteResource removes a secret with all its versions.
func (c *Client) DeleteResource(ctx context.Context, path string) error {
	p, err := resourcePath(path)
	if err != nil {
		return err
	}
	if _, err := c.call(ctx, http.MethodDelete, p, "", nil); err != nil {
		return fmt.Errorf("deleting resource %s: %w", path, err)
	}
	return nil
}

// ListResources returns the paths of all secrets, in order.
func (c *Client) ListResources(ctx context.Context) ([]string, error) {
	list, err := c.Resources(ctx, "")
	var paths []string
	for _, r := range list {
		paths = append(paths, r.Path)
	}
	return paths, err
}

// Resources tells paths, versions, sizes and times of the secrets below a prefix of whole path parts, in order; "" means all.
// Values are not to be had.
func (c *Client) Resources(ctx context.Context, prefix string) ([]resource.Info, error) {
	all := []resource.Info{}
	for after := ""; ; {
		query := url.Values{}
		if prefix != "" {
			query.Set("prefix", prefix)
		}
		if after != "" {
			query.Set("after", after)
		}
		var page []listed
		if err := c.get(ctx, "/cloister/v1/resources", query.Encode(), &page); err != nil {
			return nil, fmt.Errorf("listing resources: %w", err)
		}
		if len(page) == 0 {
			return all, nil
		}
		for _, l := range page {
			if !l.nameOnly || prefix == "" || l.Path == prefix || strings.HasPrefix(l.Path, prefix+"/") {
				all = append(all, l.Info)
			}
		}
		last := page[len(page)-1]
		if last.nameOnly { // such a broker knows no pages
			return all, nil
		}
		if last.Path <= after {
			return nil, errors.New("listing resources: the broker gives the same paths again")
		}
		after = last.Path
	}
}

// listed is an element of a list: older brokers tell names alone.
type listed struct {
	resource.Info
	nameOnly bool
}

// UnmarshalJSON is part of json.Unmarshaler.
func (l *listed) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] == '"' {
		l.nameOnly = true
		return json.Unmarshal(raw, &l.Path)
	}
	return json.Unmarshal(raw, &l.Info)
}

// Resource tells the versions of one secret.
func (c *Client) Resource(ctx context.Context, path string) (*resource.Info, error) {
	if _, err := resourcePath(path); err != nil {
		return nil, err
	}
	list, err := c.Resources(ctx, path)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Path == path {
			return &list[i], nil
		}
	}
	return nil, fmt.Errorf("resource %s: %w", path, ErrNoResource)
}

// ErrNoResource is returned for a resource that is not there.
var ErrNoResource = errors.New("there is no such resource")
