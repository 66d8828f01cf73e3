package manage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"path"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/wire/agent"
)

// Bounds of what is sent to the guest, below the 4 MiB of its messages, and of what is shown of its answers.
const (
	maxPolicy   = 4<<20 - 64<<10
	maxFragment = 1 << 20
	maxIPTables = 1 << 20
	maxSmall    = 64 << 10
	maxText     = 4 << 10
)

func (s *Server) handler() http.Handler {
	routes := map[string]map[string]func(w http.ResponseWriter, r *http.Request) error{
		"/metrics":              {http.MethodGet: s.metrics},
		"/agent-url":            {http.MethodGet: s.agentURL},
		"/policy":               {http.MethodPut: s.setPolicy},
		"/policy-fragments":     {http.MethodPost: s.loadFragment},
		"/direct-volume/stats":  {http.MethodGet: s.volumeStats, http.MethodPost: s.volumeStats},
		"/direct-volume/resize": {http.MethodPost: s.resizeVolume},
		"/iptables":             {http.MethodGet: s.ipTables, http.MethodPut: s.setIPTables},
		"/ip6tables":            {http.MethodGet: s.ipTables, http.MethodPut: s.setIPTables},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, ok := strings.CutPrefix(r.URL.Path, "/debug/pprof/"); ok && s.cfg.Profiles {
			profile(name)(w, r)
			return
		}
		methods, ok := routes[r.URL.Path]
		if !ok {
			http.Error(w, "URL NOT FOUND", http.StatusNotFound)
			return
		}
		handle, ok := methods[r.Method]
		if !ok {
			http.Error(w, fmt.Sprintf("%s does not take %s", r.URL.Path, clean(r.Method)), http.StatusMethodNotAllowed)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
		defer cancel()
		if err := handle(w, r.WithContext(ctx)); err != nil {
			http.Error(w, clean(err.Error()), statusOf(err))
		}
	})
}

// profile is the handler of one of Go's profiles.
func profile(name string) http.HandlerFunc {
	switch name {
	case "cmdline":
		return pprof.Cmdline
	case "profile":
		return pprof.Profile
	case "symbol":
		return pprof.Symbol
	case "trace":
		return pprof.Trace
	}
	return pprof.Index
}

// badRequest is a request that is wrong in itself.
type badRequest struct{ error }

// errNoAgent means that there is nobody to ask.
var errNoAgent = errors.New("the guest's agent is not connected")

// errNoVolumes means that the sandbox has none.
var errNoVolumes = errors.New("this sandbox has no direct-assigned volumes")

// statusOf says in HTTP's terms what went wrong.
func statusOf(err error) int {
	var bad badRequest
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &bad):
		return http.StatusBadRequest
	case errors.As(err, &big):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errNoAgent):
		return http.StatusServiceUnavailable
	case errors.Is(err, errNoVolumes):
		return http.StatusNotFound
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	switch status.Code(err) {
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// clean takes control characters out of a text that may come from the guest, and what is too long.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func (s *Server) agent() (Agent, error) {
	if a := s.cfg.Agent(); a != nil {
		return a, nil
	}
	return nil, errNoAgent
}

// body reads a request's body, up to a limit.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	return b, nil
}

func (s *Server) agentURL(w http.ResponseWriter, _ *http.Request) error {
	_, err := io.WriteString(w, s.cfg.AgentURL)
	return err
}

func (s *Server) setPolicy(w http.ResponseWriter, r *http.Request) error {
	text, err := body(w, r, maxPolicy)
	if err != nil {
		return err
	}
	if len(text) == 0 {
		return badRequest{errors.New("setting the guest's policy: the request has none in it")}
	}
	a, err := s.agent()
	if err != nil {
		return err
	}
	_, err = a.SetPolicy(r.Context(), &agent.SetPolicyRequest{Policy: string(text)})
	s.cfg.Logger.Info("a policy was sent to the guest", "bytes", len(text), "error", err)
	if err != nil {
		return fmt.Errorf("setting the guest's policy: %w", err)
	}
	return nil
}

func (s *Server) loadFragment(w http.ResponseWriter, r *http.Request) error {
	raw, err := body(w, r, maxFragment)
	if err != nil {
		return err
	}
	if len(raw) == 0 {
		return badRequest{errors.New("loading a policy fragment: the request has none in it")}
	}
	a, err := s.agent()
	if err != nil {
		return err
	}
	_, err = a.LoadPolicyFragment(r.Context(), &agent.LoadPolicyFragmentRequest{Fragment: raw})
	s.cfg.Logger.Info("a policy fragment was sent to the guest", "bytes", len(raw), "error", err)
	if err != nil {
		return fmt.Errorf("loading a policy fragment: %w", err)
	}
	return nil
}

// volume finds a volume's path in the guest.
func (s *Server) volume(host string) (string, error) {
	if !path.IsAbs(host) || path.Clean(host) != host || strings.ContainsRune(host, 0) {
		return "", badRequest{fmt.Errorf("volume %q: expected a plain absolute path", clean(host))}
	}
	if s.cfg.Volume == nil {
		return "", errNoVolumes
	}
	return s.cfg.Volume(host)
}

// volumeStats is the answer in the form of the storage interface's messages, as upstream has it.
type volumeStats struct {
	Usage     []volumeUsage    `json:"usage"`
	Condition *volumeCondition `json:"volume_condition,omitempty"`
}

type volumeUsage struct {
	Available uint64 `json:"available"`
	Total     uint64 `json:"total"`
	Used      uint64 `json:"used"`
	Unit      int32  `json:"unit"`
}

type volumeCondition struct {
	Abnormal bool   `json:"abnormal"`
	Message  string `json:"message"`
}

func (s *Server) volumeStats(w http.ResponseWriter, r *http.Request) error {
	at, err := s.volume(r.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	a, err := s.agent()
	if err != nil {
		return err
	}
	got, err := a.GetVolumeStats(r.Context(), &agent.VolumeStatsRequest{VolumeGuestPath: at})
	if err != nil {
		return fmt.Errorf("asking the guest for the sizes of a volume: %w", err)
	}
	out := volumeStats{Usage: []volumeUsage{}}
	for _, u := range got.GetUsage() {
		if len(out.Usage) == 8 { // there are two units
			break
		}
		out.Usage = append(out.Usage, volumeUsage{u.GetAvailable(), u.GetTotal(), u.GetUsed(), int32(u.GetUnit())})
	}
	if c := got.GetVolumeCondition(); c != nil {
		out.Condition = &volumeCondition{c.GetAbnormal(), clean(c.GetMessage())}
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(out)
}

func (s *Server) resizeVolume(w http.ResponseWriter, r *http.Request) error {
	text, err := body(w, r, maxSmall)
	if err != nil {
		return err
	}
	var req struct {
		VolumePath string
		Size       uint64
	}
	if err := json.Unmarshal(text, &req); err != nil {
		return badRequest{fmt.Errorf("resizing a volume: %w", err)}
	}
	if req.Size == 0 {
		return badRequest{errors.New("resizing a volume: expected a size")}
	}
	at, err := s.volume(req.VolumePath)
	if err != nil {
		return err
	}
	a, err := s.agent()
	if err != nil {
		return err
	}
	if _, err := a.ResizeVolume(r.Context(), &agent.ResizeVolumeRequest{VolumeGuestPath: at, Size: req.Size}); err != nil {
		return fmt.Errorf("resizing a volume in the guest: %w", err)
	}
	return nil
}

func (s *Server) ipTables(w http.ResponseWriter, r *http.Request) error {
	a, err := s.agent()
	if err != nil {
		return err
	}
	got, err := a.GetIPTables(r.Context(), &agent.GetIPTablesRequest{IsIpv6: r.URL.Path == "/ip6tables"})
	if err != nil {
		return fmt.Errorf("asking the guest for its packet filter: %w", err)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, err = w.Write(got.GetData())
	return err
}

func (s *Server) setIPTables(w http.ResponseWriter, r *http.Request) error {
	rules, err := body(w, r, maxIPTables)
	if err != nil {
		return err
	}
	a, err := s.agent()
	if err != nil {
		return err
	}
	got, err := a.SetIPTables(r.Context(), &agent.SetIPTablesRequest{IsIpv6: r.URL.Path == "/ip6tables", Data: rules})
	s.cfg.Logger.Info("a packet filter was sent to the guest", "bytes", len(rules), "error", err)
	if err != nil {
		return fmt.Errorf("setting the guest's packet filter: %w", err)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, err = w.Write(got.GetData())
	return err
}
