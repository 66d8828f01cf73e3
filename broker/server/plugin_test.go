package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/session"
)

// stage is everything around a plugin that is for administrators or for guests, and an audit log that may be full.
type stage struct {
	admin   bool
	full    bool
	entries []audit.Entry
	handled int
	before  int // entries when the plugin began
}

func (s *stage) Append(_ context.Context, e audit.Entry) error {
	if s.full {
		return errors.New("no space left on device")
	}
	s.entries = append(s.entries, e)
	return nil
}
func (s *stage) Queue(ctx context.Context, e audit.Entry) error               { return s.Append(ctx, e) }
func (*stage) Since(context.Context, uint64, int) ([]audit.Entry, error)      { return nil, nil }
func (*stage) Head() (uint64, string)                                         { return 0, "" }
func (*stage) Admit(context.Context, adminauth.Call) (string, error)          { return "ann", nil }
func (*stage) Name() string                                                   { return "some" }
func (s *stage) NeedsAdmin(context.Context, *plugin.Request) (bool, error)    { return s.admin, nil }
func (*stage) NeedsEncryption(context.Context, *plugin.Request) (bool, error) { return false, nil }
func (s *stage) Lookup(string) (plugin.Plugin, bool)                          { return s, true }
func (*stage) Status() []plugin.Status                                        { return nil }
func (*stage) Decide(context.Context, resource.Request) (*resource.Decision, error) {
	return &resource.Decision{Allow: true}, nil
}
func (s *stage) Handle(context.Context, *plugin.Request) (*plugin.Response, error) {
	s.handled++
	s.before = len(s.entries)
	return &plugin.Response{Body: []byte("the secret")}, nil
}

// tokenOf is a guest's token that is good.
type tokenOf struct{ tokens }

func (tokenOf) Verify(string) (map[string]any, error) { return map[string]any{"jti": "x"}, nil }

type noDecisions struct{}

func (noDecisions) Put(context.Context, decision.Record) error { return nil }
func (noDecisions) Get(context.Context, string) (*decision.Record, error) {
	return nil, errors.New("none")
}

// TestPluginsAreRecorded: whoever asks a plugin, what it gives away is recorded first, and so is what it is made to do.
func TestPluginsAreRecorded(t *testing.T) {
	for _, tc := range []struct {
		admin  bool
		method string
	}{{true, "GET"}, {true, "POST"}, {false, "GET"}, {false, "POST"}} {
		for _, full := range []bool{false, true} {
			s := &stage{admin: tc.admin, full: full}
			srv := New(Parts{
				Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now, Sessions: session.NewManager(time.Now, 0, 0), Tokens: tokenOf{},
				Gate: s, Plugins: s, Audit: s, Decisions: noDecisions{}, Admins: s, Metrics: NewMetrics("", func() float64 { return 0 }),
				Limiter: NewLimiter(Limits{}, time.Now),
			})
			r := httptest.NewRequest(tc.method, "/kbs/v0/some/thing", nil)
			r.Header.Set("Authorization", "Bearer x")
			w := httptest.NewRecorder()
			srv.ServeHTTP(w, r)
			out := strings.Contains(w.Body.String(), "the secret")
			switch {
			case full && (out || tc.method == "POST" && s.handled > 0):
				t.Errorf("%+v: with a full audit log: %d, %d times done: %s", tc, w.Code, s.handled, w.Body)
			case !full && (!out || len(s.entries) == 0 || tc.method == "POST" && s.before == 0):
				t.Errorf("%+v: %d %s, %d entries, %d of them before", tc, w.Code, w.Body, len(s.entries), s.before)
			}
		}
	}
}
