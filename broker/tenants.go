package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/plugin/builtin"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/tenant"
)

// tenantPrefix comes before the name of a tenant in a path.
const tenantPrefix = "/ns/"

const (
	// tenantTrust is how long an answer of the store about a tenant counts: for so long may another broker of the same
	// database let a removed tenant's guests in.
	tenantTrust = 2 * time.Second
	// openTimeout bounds the opening of a realm.
	openTimeout = 30 * time.Second
)

// maxOpen bounds the realms that are kept open; above it, the one that was not asked for longest is closed.
const maxOpen = 1024

// tenants leads requests to the realm they are for, and opens realms when they are first asked for.
type tenants struct {
	b    *Broker
	list *tenant.Store
	// looking lets one request at a time ask the store about a name, naming about all names.
	looking, naming singleflight.Group
	closing         sync.WaitGroup // of realms that are being closed

	mu     sync.Mutex
	closed bool
	open   map[string]*resident
	// known are the names of all tenants when they were last looked at. Any number of other names costs the store no more than that.
	known   map[string]bool
	knownAt time.Time
	changes int // of the list, by this broker
}

// resident is a tenant whose realm is open.
type resident struct {
	realm   *realm
	limiter *rate.Limiter
	tenant  atomic.Pointer[tenant.Tenant] // as it was when checked
	checked time.Time
	used    time.Time
}

func newTenants(b *Broker) *tenants {
	return &tenants{b: b, list: tenant.NewStore(b.db, b.now), open: map[string]*resident{}}
}

// ServeHTTP is part of http.Handler: the path says which realm a request is for.
func (t *tenants) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, tenantPrefix)
	name, sub, _ := strings.Cut(rest, "/")
	if !ok || !store.ValidTenant(name) || r.URL.RawPath != "" {
		t.b.root.server.ServeHTTP(w, r) // which knows what to say to wrong paths
		return
	}
	one, err := t.find(r.Context(), name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		t.b.root.server.ServeHTTP(w, r)
		return
	case err != nil:
		t.b.log.ErrorContext(r.Context(), "opening a tenant", "tenant", name, "error", err)
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the tenant cannot be served now", http.StatusServiceUnavailable)
		return
	}
	inner := r.Clone(r.Context())
	inner.URL.Path = "/" + sub
	one.realm.server.ServeHTTP(w, inner)
}

// find returns a tenant's realm, opening it when it is not, or an error that wraps store.ErrNotFound.
func (t *tenants) find(ctx context.Context, name string) (*resident, error) {
	now := t.b.now()
	t.mu.Lock()
	one := t.open[name]
	if one != nil && now.Sub(one.checked) < tenantTrust {
		one.used = now
		t.mu.Unlock()
		return one, nil
	}
	t.mu.Unlock()
	if one == nil {
		if is, err := t.is(ctx, name); err != nil || !is {
			return nil, cmp.Or(err, store.ErrNotFound)
		}
	}
	// Many may ask at once: one of them looks, and its going away is no reason for the others to fail.
	got, err, _ := t.looking.Do(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
		defer cancel()
		return t.look(ctx, name)
	})
	if err != nil {
		return nil, err
	}
	return got.(*resident), nil
}

// is tells whether there is a tenant of a name, by a look at all names that is not too old.
func (t *tenants) is(ctx context.Context, name string) (bool, error) {
	t.mu.Lock()
	now, changes := t.b.now(), t.changes
	if t.known != nil && now.Sub(t.knownAt) < tenantTrust {
		defer t.mu.Unlock()
		return t.known[name], nil
	}
	t.mu.Unlock()
	// A look that began before a change of this broker's is not shared with who comes after it.
	got, err, _ := t.naming.Do(strconv.Itoa(changes), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
		defer cancel()
		names, err := t.list.Names(ctx)
		if err != nil {
			return nil, err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.changes == changes {
			t.known, t.knownAt = names, now
		}
		return names, nil
	})
	if err != nil {
		return false, err
	}
	return got.(map[string]bool)[name], nil
}

// look asks the store about a tenant and opens its realm, or takes up what has changed. It runs once at a time for a name.
func (t *tenants) look(ctx context.Context, name string) (*resident, error) {
	current, err := t.list.Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		t.forget(name)
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	one := t.open[name]
	t.mu.Unlock()
	if one == nil || one.tenant.Load().Key != current.Key { // not open, or removed and made anew
		if one, err = t.newResident(ctx, current); err != nil {
			return nil, err
		}
	}
	one.tenant.Store(current)
	one.limiter.SetLimit(requestRate(current.Quota))
	one.limiter.SetBurst(requestBurst(current.Quota))
	return one, t.admit(name, one)
}

// requestRate is how many requests a second a tenant's guests and administrators may make.
func requestRate(q tenant.Quota) rate.Limit {
	if q.RequestsPerSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(q.RequestsPerSecond)
}

// burstSeconds is for how many seconds' worth of requests a tenant may ask at once.
const burstSeconds = 10

// requestBurst is how many requests may come at once.
func requestBurst(q tenant.Quota) int {
	return int(min(max(1, q.RequestsPerSecond*burstSeconds), math.MaxInt32))
}

// sealPrefix comes before the places that a tenant's values are sealed for. It is of the tenant, not of its name: one that is made anew
// under the name of another opens nothing of it.
func sealPrefix(t *tenant.Tenant) string { return "tenant:" + t.Key + ":" }

// newResident opens the realm of a tenant.
func (t *tenants) newResident(ctx context.Context, current *tenant.Tenant) (*resident, error) {
	b := t.b
	one := &resident{limiter: rate.NewLimiter(requestRate(current.Quota), requestBurst(current.Quota))}
	one.tenant.Store(current)
	part, err := current.Scope(b.db, func(ns string) store.Limit { return one.tenant.Load().Quota.Limit(ns) })
	if err != nil {
		return nil, err
	}
	admins, err := b.tenantAuthority(one)
	if err != nil {
		return nil, err
	}
	one.realm, err = b.openRealm(ctx, realmParts{
		prefix: tenantPrefix + current.Name, db: part, key: placed{b.key, sealPrefix(current)},
		audit: tenantAudit{b.audit, current.Name}, admins: admins,
		// Secrets of tenants are always in the broker's own store: other back ends know nothing of tenants.
		resources: resources.DefaultConfig(), plugins: builtin.Config{},
		rate: one.limiter.Allow, sessions: cmp.Or(current.Quota.Sessions, b.cfg.Attestation.MaxSessions),
	})
	if err != nil {
		return nil, fmt.Errorf("opening tenant %s: %w", current.Name, err)
	}
	return one, nil
}

// admit puts a realm among the open ones.
func (t *tenants) admit(name string, one *resident) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errors.Join(errClosed, one.realm.close())
	}
	if t.open[name] != one {
		t.drop(name)
		if len(t.open) >= maxOpen {
			t.drop(slices.MinFunc(slices.Collect(maps.Keys(t.open)), func(a, b string) int { return t.open[a].used.Compare(t.open[b].used) }))
		}
		t.open[name] = one
	}
	one.checked, one.used = t.b.now(), t.b.now()
	return nil
}

// drop closes a realm. Requests in it go on. t is locked, so nobody waits for what the realm has under way at the store.
func (t *tenants) drop(name string) {
	if one := t.open[name]; one != nil {
		delete(t.open, name)
		t.closing.Go(func() {
			if err := one.realm.close(); err != nil {
				t.b.log.Error("closing a tenant", "tenant", name, "error", err)
			}
		})
	}
}

// forget closes what a name stood for that there is no tenant of.
func (t *tenants) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(name)
}

// refresh makes the next request for a tenant ask the store.
func (t *tenants) refresh(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known = nil
	t.changes++
	if one := t.open[name]; one != nil {
		one.checked = time.Time{}
	}
}

// each calls fn for the root's realm and all that are open.
func (t *tenants) each(fn func(*realm)) {
	fn(t.b.root)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.open {
		fn(one.realm)
	}
}

func (t *tenants) close() error {
	t.mu.Lock()
	t.closed = true
	for name := range t.open {
		t.drop(name)
	}
	t.mu.Unlock()
	t.closing.Wait()
	return nil
}

// Create is part of server.Tenants.
func (t *tenants) Create(ctx context.Context, name string, q tenant.Quota) (string, error) {
	defer t.refresh(name)
	return t.list.Create(ctx, name, q)
}

// Delete is part of server.Tenants.
func (t *tenants) Delete(ctx context.Context, name string) error {
	defer t.refresh(name)
	return t.list.Delete(ctx, name)
}

// NewToken is part of server.Tenants.
func (t *tenants) NewToken(ctx context.Context, name string) (string, error) {
	defer t.refresh(name)
	return t.list.NewToken(ctx, name)
}

// SetQuota is part of server.Tenants.
func (t *tenants) SetQuota(ctx context.Context, name string, q tenant.Quota) error {
	defer t.refresh(name)
	return t.list.SetQuota(ctx, name, q)
}

// List is part of server.Tenants.
func (t *tenants) List(ctx context.Context) ([]tenant.Info, error) { return t.list.Infos(ctx) }

// tenantAuthority admits a tenant's own administrators: the holder of its token, and roles that the configuration lets call its paths,
// by certificate too; where a certificate is required, the token alone is not enough here either.
func (b *Broker) tenantAuthority(one *resident) (adminauth.Authority, error) {
	switch b.cfg.Admin.Mode {
	case config.AdminDenyAll, config.AdminInsecureAllowAll:
		return b.admins, nil
	}
	return b.cfg.Admin.Certificates.Combine(tenantTokens{b, one}, b.cfg.Admin.AuthRules())
}

// tenantTokens admits holders of tokens. The root's token is not among them: who runs the broker makes and removes tenants, and does
// not read or change what they keep.
type tenantTokens struct {
	b   *Broker
	one *resident
}

// Admit is part of adminauth.Authority.
func (a tenantTokens) Admit(ctx context.Context, c adminauth.Call) (string, error) {
	t := a.one.tenant.Load()
	err := t.Check(c.Bearer)
	if err == nil {
		return "admin of tenant " + t.Name, nil
	}
	if a.b.cfg.Admin.Mode == config.AdminJWT {
		return a.b.tokens.Admit(ctx, c)
	}
	return "", fmt.Errorf("%w: %w", adminauth.ErrDenied, err)
}
