package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// script is a plugin and an access that write down who is asked what.
type script struct {
	admin, encrypt bool
	fail           string
	log            []string
	saw            map[string]any
}

var errScript = errors.New("told to fail")

func (s *script) step(name string) error {
	s.log = append(s.log, name)
	if s.fail == name {
		return errScript
	}
	return nil
}

func (*script) Name() string { return "script" }
func (s *script) NeedsAdmin(_ context.Context, r *Request) (bool, error) {
	s.saw = r.InitData
	return s.admin, s.step("auth")
}
func (s *script) NeedsEncryption(context.Context, *Request) (bool, error) {
	return s.encrypt, s.step("encryption")
}
func (s *script) Handle(_ context.Context, r *Request) (*Response, error) {
	s.saw = r.InitData
	if err := s.step("handle"); err != nil {
		return nil, err
	}
	if s.fail == "no answer" {
		return nil, nil
	}
	return &Response{Body: []byte("b")}, nil
}
func (s *script) Admin(context.Context, *Request) error { return s.step("admin") }
func (s *script) Guest(context.Context, *Request) (map[string]any, error) {
	return map[string]any{"from": "token"}, s.step("guest")
}

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		admin, encrypt bool
		fail, log      string
	}{
		{true, true, "", "auth admin handle"},
		{true, false, "admin", "auth admin"},
		{true, false, "handle", "auth admin handle"},
		{false, true, "", "auth guest handle encryption"},
		{false, false, "", "auth guest handle encryption"},
		{false, true, "auth", "auth"},
		{false, true, "guest", "auth guest"},
		{false, true, "handle", "auth guest handle"},
		{false, true, "no answer", "auth guest handle"},
		{false, true, "encryption", "auth guest handle encryption"},
	} {
		s := &script{admin: c.admin, encrypt: c.encrypt, fail: c.fail}
		r := &Request{InitData: map[string]any{"from": "client"}}
		answer, err := Do(t.Context(), s, r, s)
		if got := strings.Join(s.log, " "); got != c.log {
			t.Errorf("%+v: got %q", c, got)
		}
		if (err == nil) != (c.fail == "") || err != nil && answer != nil {
			t.Errorf("%+v: %+v, %v", c, answer, err)
		}
		if err == nil && (answer.Admin != c.admin || answer.Encrypt != (c.encrypt && !c.admin) || string(answer.Body) != "b") {
			t.Errorf("%+v: %+v", c, answer)
		}
		if s.saw["from"] == "client" || err == nil && !c.admin && s.saw["from"] != "token" || c.admin && s.saw != nil {
			t.Errorf("%+v: the plugin saw init data %v", c, s.saw)
		}
	}
}

func TestNewRequest(t *testing.T) {
	r, err := NewRequest("GET", "a/b.c/d e", url.Values{"x": {"1", "2"}, "y": {""}}, []byte("b"))
	if err != nil || !slices.Equal(r.Path, []string{"a", "b.c", "d e"}) || !maps.Equal(r.Query, map[string]string{"x": "2", "y": ""}) {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = NewRequest("GET", "", nil, nil); err != nil || len(r.Path) != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, path := range []string{"/", "a/", "/a", "a//b", "a/../b", ".", "a\x00", "a\n", "a\\b", "\xff", strings.Repeat("a",
		maxPart+1), strings.Repeat("a/", maxParts) + "a"} {
		if _, err := NewRequest("GET", path, nil, nil); !errors.Is(err, ErrRequest) {
			t.Errorf("path %.40q: %v", path, err)
		}
	}
	many := url.Values{}
	for i := range maxQuery + 1 {
		many.Set(fmt.Sprint(i), "")
	}
	for _, query := range []url.Values{many, {"a": {strings.Repeat("a", maxValue+1)}}, {strings.Repeat("a", maxPart+1): {""}},
		{"a\x00": {""}}, {"a": {"\xff"}}} {
		if _, err := NewRequest("GET", "a", query, nil); !errors.Is(err, ErrRequest) {
			t.Errorf("query %.40v: %v", query, err)
		}
	}
}

type closing struct {
	*script
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }

func TestSet(t *testing.T) {
	closed := 0
	good := Entry{Name: "script", New: func(context.Context) (Plugin, error) { return closing{&script{}, &closed}, nil }}
	s, err := NewSet(t.Context(), []Entry{good, {Name: "off"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Lookup("script"); !ok {
		t.Error("script is not there")
	}
	for _, name := range []string{"off", "", "other"} {
		if _, ok := s.Lookup(name); ok {
			t.Errorf("%q is there", name)
		}
	}
	if st := s.Status(); !slices.Equal(st, []Status{{"script", true}, {"off", false}}) {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil || closed != 1 {
		t.Errorf("%d closed, %v", closed, err)
	}
	for name, bad := range map[string]Entry{
		"twice":   good,
		"failing": {Name: "f", New: func(context.Context) (Plugin, error) { return nil, errScript }},
		"renamed": {Name: "r", New: good.New},
	} {
		closed = 0
		if _, err := NewSet(t.Context(), []Entry{good, bad}); err == nil || closed == 0 {
			t.Errorf("%s: %d closed, %v", name, closed, err)
		}
	}
}
