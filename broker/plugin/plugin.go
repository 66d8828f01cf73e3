// Package plugin is what answers requests below /kbs/v0/NAME/ (kbs-protocol.md section 6).
//
// The life of a request is one function, Do: the plugin says who may ask; an administrator or a guest whom the resource
// policy allows is admitted; the plugin answers; for a guest it says whether the answer has to be encrypted. Which plugins
// there are is one list, in the package builtin.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrRequest is wrapped by errors that are the client's fault and may be shown to it.
var ErrRequest = errors.New("the request is not one of this plugin")

// Request is what a client asks of a plugin.
type Request struct {
	Method string
	// Path is what follows the name of the plugin.
	Path  []string
	Query map[string]string
	Body  []byte
	// InitData are the claims of the guest's init data; nil for an administrator or a guest without.
	InitData map[string]any
}

// Response is what a plugin answers.
type Response struct {
	Body []byte
	// Version is the version of the resource that was read or written; 0 says nothing.
	Version uint64
}

// Plugin answers requests. Its methods are called by many requests at once; each gets the time that ctx has. An error may
// wrap ErrRequest, resource.ErrPath, resource.ErrQuota, resource.ErrReadOnly or store.ErrNotFound; it never holds a secret.
type Plugin interface {
	// Name is the part of the URL that selects the plugin.
	Name() string
	// NeedsAdmin tells whether a request is for administrators; if not, it is for guests. It refuses what nobody may ask.
	NeedsAdmin(ctx context.Context, r *Request) (bool, error)
	// Handle answers a request of somebody who was admitted.
	Handle(ctx context.Context, r *Request) (*Response, error)
	// NeedsEncryption tells whether the answer to a guest is encrypted. It is asked after Handle.
	NeedsEncryption(ctx context.Context, r *Request) (bool, error)
}

// Access admits those who ask.
type Access interface {
	// Admin returns nil for an administrator who may do this.
	Admin(ctx context.Context, r *Request) error
	// Guest returns the claims of the init data of a guest that the resource policy allows to do this.
	Guest(ctx context.Context, r *Request) (map[string]any, error)
}

// Answer is what a client gets.
type Answer struct {
	Response
	// Admin says that the answer goes to an administrator.
	Admin bool
	// Encrypt says that the answer has to be encrypted to the key of the guest.
	Encrypt bool
}

// Do lets a plugin answer a request. Errors of access are returned as they are.
func Do(ctx context.Context, p Plugin, r *Request, access Access) (*Answer, error) {
	// What the plugin hears about the guest comes from access and nowhere else.
	own := *r
	own.InitData = nil
	admin, err := p.NeedsAdmin(ctx, &own)
	if err != nil {
		return nil, fmt.Errorf("plugin %s: %w", p.Name(), err)
	}
	if admin {
		if err := access.Admin(ctx, &own); err != nil {
			return nil, err
		}
	} else if own.InitData, err = access.Guest(ctx, &own); err != nil {
		return nil, err
	}
	response, err := p.Handle(ctx, &own)
	if err == nil && response == nil {
		err = errors.New("it has no answer")
	}
	if err != nil {
		return nil, fmt.Errorf("plugin %s: %w", p.Name(), err)
	}
	answer := &Answer{Response: *response, Admin: admin}
	if admin {
		return answer, nil
	}
	if answer.Encrypt, err = p.NeedsEncryption(ctx, &own); err != nil {
		return nil, fmt.Errorf("plugin %s: %w", p.Name(), err)
	}
	return answer, nil
}

const (
	maxParts = 32
	maxPart  = 1024
	maxQuery = 64
	maxValue = 64 << 10
)

// NewRequest makes a Request of the decoded URL path after the plugin's name. Paths are not cleaned: odd ones are refused.
// Of a query member that occurs more than once the last counts.
func NewRequest(method, path string, query url.Values, body []byte) (*Request, error) {
	r := &Request{Method: method, Query: map[string]string{}, Body: body}
	if path != "" {
		r.Path = strings.Split(path, "/")
	}
	if len(r.Path) > maxParts {
		return nil, fmt.Errorf("path has %d parts, at most %d are taken: %w", len(r.Path), maxParts, ErrRequest)
	}
	for _, part := range r.Path {
		if part == "" || part == "." || part == ".." || len(part) > maxPart || !plain(part) || strings.Contains(part, `\`) {
			return nil, fmt.Errorf("path part %.64q is empty, too long or not plain: %w", part, ErrRequest)
		}
	}
	if len(query) > maxQuery {
		return nil, fmt.Errorf("query has %d members, at most %d are taken: %w", len(query), maxQuery, ErrRequest)
	}
	for name, values := range query {
		last := values[len(values)-1]
		if len(name) > maxPart || len(last) > maxValue || !plain(name) || !utf8.ValidString(last) {
			return nil, fmt.Errorf("query member %.64q is too long or not plain: %w", name, ErrRequest)
		}
		r.Query[name] = last
	}
	return r, nil
}

func plain(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

// Entry is a kind of plugin.
type Entry struct {
	Name string
	// New starts the plugin; nil when it is not configured.
	New func(ctx context.Context) (Plugin, error)
}

// Status is the state of a plugin.
type Status struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
}

// Set is the plugins of a broker.
type Set struct {
	ready  map[string]Plugin
	status []Status
}

// NewSet starts every configured plugin of a list. One that was asked for and cannot start is an error.
func NewSet(ctx context.Context, entries []Entry) (*Set, error) {
	s := &Set{ready: map[string]Plugin{}}
	var errs []error
	for _, e := range entries {
		st := Status{Name: e.Name}
		if e.New != nil {
			p, err := e.New(ctx)
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("starting plugin %s: %w", e.Name, err))
			case p.Name() != e.Name || s.ready[e.Name] != nil:
				errs = append(errs, fmt.Errorf("starting plugin %s: it is listed twice or calls itself %s", e.Name, p.Name()))
			default:
				s.ready[e.Name], st.Ready = p, true
			}
		}
		s.status = append(s.status, st)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Lookup returns a plugin that is ready.
func (s *Set) Lookup(name string) (Plugin, bool) {
	p, ok := s.ready[name]
	return p, ok
}

// Status tells about every kind of plugin.
func (s *Set) Status() []Status { return slices.Clone(s.status) }

// Close ends what the plugins hold open.
func (s *Set) Close() error {
	var errs []error
	for _, p := range s.ready {
		if c, ok := p.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
