package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	registryAttempts  = 3
	registryIdle      = 60 * time.Second
	registryBackoff   = 500 * time.Millisecond
	maxErrorBodyBytes = 1 << 10
	userAgent         = "cloister-guest"
)

// registry talks to one repository at one registry (OCI distribution, pull only).
type registry struct {
	http     *http.Client
	base     string // scheme://host
	insecure bool   // plain HTTP, by configuration
	ref      Reference
	cred     credential
	log      *slog.Logger
	idle     time.Duration

	mu     sync.Mutex
	header string // Authorization for this repository, once the registry has asked for one
}

// newRegistry makes a client for ref's repository.
func newRegistry(transport http.RoundTripper, ref Reference, insecure bool, cred credential, log *slog.Logger) *registry {
	r := &registry{insecure: insecure, ref: ref, cred: cred, log: log, idle: registryIdle}
	scheme, host := "https", ref.Registry
	if insecure {
		scheme = "http"
	}
	if host == dockerHub {
		host = "registry-1.docker.io"
	}
	r.base = scheme + "://" + host
	r.http = &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) >= 5 {
			return errors.New("more than 5 redirects")
		}
		return r.mayAsk(req.URL)
	}}
	return r
}

// mayAsk says whether the registry may send the guest to u. Plain HTTP, where it is configured, is for the registry
// itself: whoever is on the way to it could name the guest's own services on loopback, which would answer the guest with
// the pod's secrets.
func (r *registry) mayAsk(u *url.URL) error {
	switch {
	case u.Scheme == "https":
		return nil
	case !r.insecure:
		return fmt.Errorf("redirected from https to %s", u.Scheme)
	case u.Scheme+"://"+u.Host != r.base:
		return fmt.Errorf("directed to %s://%s, expected https or %s", u.Scheme, u.Host, r.base)
	}
	return nil
}

// statusError is an answer other than success.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("registry answered %d %s %s", e.status, http.StatusText(e.status), e.text))
}

// manifest fetches a manifest or index by tag or digest, checks the digest if there is one, and returns its digest.
func (r *registry) manifest(ctx context.Context, tagOrDigest string, want Digest) (data []byte, contentType string, d Digest, err error) {
	accept := strings.Join([]string{typeOCIIndex, typeOCIManifest, typeDockerList, typeDockerManifest}, ", ")
	resp, err := r.get(ctx, "/manifests/"+tagOrDigest, http.Header{"Accept": {accept}}, http.StatusOK)
	if err != nil {
		return nil, "", Digest{}, fmt.Errorf("fetching manifest %s: %w", tagOrDigest, err)
	}
	defer resp.Body.Close()
	data, err = readAtMost(resp.Body, maxManifestBytes)
	if err != nil {
		return nil, "", Digest{}, fmt.Errorf("fetching manifest %s: %w", tagOrDigest, err)
	}
	if want.Algorithm == "" {
		return data, resp.Header.Get("Content-Type"), sha256Digest(data), nil
	}
	if err := want.checkBytes(data); err != nil {
		return nil, "", Digest{}, fmt.Errorf("manifest %s: %w", tagOrDigest, err)
	}
	return data, resp.Header.Get("Content-Type"), want, nil
}

// blob fetches a small blob whole and checks its size and digest.
func (r *registry) blob(ctx context.Context, desc descriptor, limit int64) ([]byte, error) {
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, the limit is %d", desc.Digest, desc.Size, limit)
	}
	body, err := r.open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := readAtMost(body, desc.Size)
	if err != nil {
		return nil, fmt.Errorf("fetching blob %s: %w", desc.Digest, err)
	}
	if int64(len(data)) != desc.Size {
		return nil, fmt.Errorf("blob %s has %d bytes, expected %d", desc.Digest, len(data), desc.Size)
	}
	if err := desc.Digest.checkBytes(data); err != nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	return data, nil
}

// open starts the download of a blob. A connection that breaks is taken up again where it stopped.
func (r *registry) open(ctx context.Context, desc descriptor) (io.ReadCloser, error) {
	b := &blobReader{ctx: ctx, r: r, desc: desc}
	if err := b.connect(); err != nil {
		return nil, fmt.Errorf("fetching blob %s: %w", desc.Digest, err)
	}
	return b, nil
}

// blobReader reads a blob over as many connections as it takes, within reason.
type blobReader struct {
	ctx      context.Context
	r        *registry
	desc     descriptor
	body     io.ReadCloser
	offset   int64
	failures int // since the last byte
}

func (b *blobReader) connect() error {
	header, status := http.Header{}, http.StatusOK
	if b.offset > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(b.offset, 10)+"-")
		status = http.StatusPartialContent
	}
	resp, err := b.r.get(b.ctx, "/blobs/"+b.desc.Digest.String(), header, status)
	if err != nil {
		return err
	}
	if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size-b.offset {
		resp.Body.Close()
		return fmt.Errorf("registry announces %d bytes, expected %d", resp.ContentLength, b.desc.Size-b.offset)
	}
	b.body = resp.Body
	return nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		b.offset += int64(n)
		if n > 0 {
			b.failures = 0
			return n, nil // an error comes again
		}
		if err == nil || b.offset >= b.desc.Size || b.ctx.Err() != nil {
			return n, err
		}
		b.body.Close()
		b.failures++
		if b.failures >= registryAttempts {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("download stopped at byte %d of %d: %w", b.offset, b.desc.Size, err)
		}
		b.r.log.Info("download interrupted, continuing", "blob", b.desc.Digest.String(), "offset", b.offset, "error", err)
		if err := wait(b.ctx, registryBackoff<<(b.failures-1)); err != nil {
			return 0, err
		}
		if err := b.connect(); err != nil {
			b.body = http.NoBody
			return 0, fmt.Errorf("download stopped at byte %d of %d: %w", b.offset, b.desc.Size, err)
		}
	}
}

func (b *blobReader) Close() error { return b.body.Close() }

// get sends a GET below /v2/<repository>, authenticates if asked to, and retries what may be temporary.
func (r *registry) get(ctx context.Context, path string, header http.Header, status int) (*http.Response, error) {
	for attempt, authorised := 1, false; ; {
		resp, err := r.once(ctx, r.base+"/v2/"+r.ref.Repository+path, header, r.authorization())
		if err == nil && resp.StatusCode == status {
			return resp, nil
		}
		if err == nil && resp.StatusCode == http.StatusUnauthorized && !authorised {
			challenges := resp.Header.Values("Www-Authenticate")
			drain(resp)
			if err := r.authorise(ctx, challenges); err != nil {
				return nil, err
			}
			authorised = true
			continue
		}
		retry := true
		if err == nil {
			retry = resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500
			text := drain(resp)
			if resp.StatusCode < http.StatusBadRequest {
				text = "" // not an explanation, but content, which belongs in no error
			}
			err = &statusError{status: resp.StatusCode, text: text}
		} else {
			retry = ctx.Err() == nil && temporary(err)
		}
		if !retry || attempt >= registryAttempts {
			return nil, err
		}
		if werr := wait(ctx, registryBackoff<<(attempt-1)); werr != nil {
			return nil, err
		}
		attempt++
	}
}

// temporary says whether a connection that failed like this may succeed a moment later.
func temporary(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	var op *net.OpError
	var netErr net.Error
	return errors.As(err, &op) || errors.As(err, &netErr) && netErr.Timeout() || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (r *registry) once(ctx context.Context, target string, header http.Header, authorization string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", userAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		cancel(nil)
		return nil, cleanURLError(err)
	}
	timer := time.AfterFunc(r.idle, func() { cancel(errStalled) })
	timer.Stop()
	resp.Body = &idleBody{body: resp.Body, timer: timer, idle: r.idle, cancel: cancel, ctx: ctx}
	return resp, nil
}

// cleanURLError drops the query of a URL in an error: redirect targets carry signatures in theirs.
func cleanURLError(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		if u, perr := url.Parse(ue.URL); perr == nil {
			u.RawQuery, u.User = "", nil
			return &url.Error{Op: ue.Op, URL: u.String(), Err: ue.Err}
		}
	}
	return err
}

// drain reads a little of an error answer for the message and closes it.
func drain(resp *http.Response) string {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBodyBytes))
	resp.Body.Close()
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(strings.TrimSpace(string(text)), "?"))
}

// readAtMost reads all of r, which may hold at most limit bytes.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is longer than %d bytes", limit)
	}
	return data, nil
}

// wait waits unless ctx ends first.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
