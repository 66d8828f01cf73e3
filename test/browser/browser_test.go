package browser

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/cloister/cloister/broker/console/consoletest"
	"github.com/cloister/cloister/internal/needs"
)

// patience bounds one step of a person at the browser.
const patience = 3 * time.Minute

// tab is a tab of a browser that shows the console of a world.
type tab struct {
	t     *testing.T
	ctx   context.Context
	world *consoletest.World
	url   string

	mu         sync.Mutex
	complaints []string
}

// open starts the console on TLS, and a browser.
func open(t *testing.T) *tab {
	t.Helper()
	w := consoletest.New(t)
	server := httptest.NewTLSServer(w.Console)
	t.Cleanup(server.Close)
	b := newTab(t, server.URL)
	b.world = w
	return b
}

// newTab starts a browser for the console at an address.
func newTab(t *testing.T, url string) *tab {
	t.Helper()
	program := needs.Program(t, "chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.IgnoreCertErrors,
		chromedp.WindowSize(1280, 900), chromedp.WSURLReadTimeout(patience))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // chromium refuses to start as root with it
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(allocator)
	t.Cleanup(end)
	b := &tab{t: t, ctx: ctx, url: url}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, log.Enable, cdp.Empty{})
		return err
	}))
	return b
}

// hear notes what the browser complains about: violations of the Content-Security-Policy are among it.
func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
	case *runtime.EventConsoleAPICalled:
		b.complaints = append(b.complaints, fmt.Sprintf("console.%s", e.Type))
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, "exception: "+e.ExceptionDetails.Text)
	case *page.EventJavascriptDialogOpening:
		b.complaints = append(b.complaints, "dialog: "+e.Message)
	}
}

func (b *tab) heard() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.complaints...)
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

func ask[T any](b *tab, script string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](script))
	if err != nil {
		b.t.Fatalf("%s: %v", script, err)
	}
	return v
}

// key presses keys.
func (b *tab) key(keys string, options ...chromedp.KeyOption) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys, options...))
}

// follow presses Enter and waits for the page that it leads to.
func (b *tab) follow() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.WaitEvent(page.LoadEventFired, nil, chromedp.KeyEvent(kb.Enter))); err != nil {
		b.t.Fatalf("after Enter on %s: %v", ask[string](b, "document.activeElement.outerHTML"), err)
	}
}

// to presses Tab until an element has the focus, and checks that one sees it.
func (b *tab) to(selector string) {
	b.t.Helper()
	for range 150 {
		b.key(kb.Tab)
		if !ask[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			continue
		}
		seen := `(() => { const e = document.activeElement; const at = e.closest(".editor") || e; return getComputedStyle(at).outlineStyle; })()`
		if outline := ask[string](b, seen); outline == "none" {
			b.t.Errorf("the focus on %s cannot be seen", selector)
		}
		return
	}
	b.t.Fatalf("Tab does not reach %s on %s", selector, ask[string](b, "location.href"))
}

// see checks that the page says something.
func (b *tab) see(texts ...string) {
	b.t.Helper()
	all := ask[string](b, "document.body.innerText")
	for _, text := range texts {
		if !strings.Contains(all, text) {
			b.t.Errorf("%s does not say %q but:\n%s", ask[string](b, "location.pathname"), text, all)
		}
	}
}

func (b *tab) signIn() {
	b.t.Helper()
	b.signInWith(consoletest.Token)
}

func (b *tab) signInWith(token string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.url + "/console"))
	if !ask[bool](b, `document.activeElement.id === "token"`) {
		b.to("#token")
	}
	b.key(token)
	b.follow()
	b.see("Overview", "Latest attestations")
}

// section goes to a section by the menu.
func (b *tab) section(path string) {
	b.t.Helper()
	b.to(fmt.Sprintf(`nav a[href=%q]`, path))
	b.follow()
}

// TestByKeyboard is an administrator's day without a mouse.
func TestByKeyboard(t *testing.T) {
	b := open(t)
	b.signIn()

	// The first stop is the link that skips the menu.
	b.do(chromedp.Reload())
	b.key(kb.Tab)
	if !ask[bool](b, `document.activeElement.matches(".skip") && document.activeElement.getBoundingClientRect().top >= 0`) {
		t.Error("the first Tab does not show the skip link")
	}

	// Why was it refused?
	b.section("/console/attestations")
	b.to(fmt.Sprintf(`a[href="/console/decisions/%s"]`, b.world.Bad))
	b.follow()
	record, err := b.world.Decisions.Get(t.Context(), b.world.Bad)
	if err != nil {
		t.Fatal(err)
	}
	b.see("tpm.pcr09", "is not an approved value", strings.Trim(string(record.Parts[0].Findings[0].Got), `"`))

	// What a hostile guest says stays text.
	b.do(chromedp.Navigate(b.url + "/console/decisions/" + b.world.Bitten))
	b.see("<script>alert('guest')</script>", `\u{202e}gnp.exe`)

	b.editPolicy()
	b.storeSecret()

	b.to(`form[action="/console/sign-out"] button`)
	b.follow()
	b.see("Sign in")
	b.do(chromedp.Navigate(b.url + "/console/audit"))
	if at := ask[string](b, "location.pathname"); at != "/console/sign-in" {
		t.Errorf("after signing out the audit log leads to %s", at)
	}
	if heard := b.heard(); len(heard) > 0 {
		t.Errorf("the browser complains: %q", heard)
	}
}

// editPolicy edits, tries out and saves a policy.
func (b *tab) editPolicy() {
	t := b.t
	t.Helper()
	b.section("/console/policies")
	b.to(`a[href="/console/policies/attestation/default_cpu"]`)
	b.follow()
	if n := ask[string](b, `document.querySelector(".gutter").textContent.trim().split("\n").length + ""`); n == "1" {
		t.Error("the editor has no line numbers")
	}
	b.to("#text")
	b.key(kb.Home, chromedp.KeyModifiers(kb.ModifierCtrl))
	b.key("#")
	b.key(kb.Tab) // indents
	b.key("reviewed\n")
	if text := ask[string](b, `document.getElementById("text").value.slice(0, 12)`); text != "#\treviewed\np" {
		t.Errorf("the text begins with %q", text)
	}
	b.key(kb.Escape)
	b.key(kb.Tab)
	if ask[bool](b, `document.activeElement.id === "text"`) {
		t.Fatal("Escape and Tab do not leave the editor")
	}
	b.do(chromedp.SetValue(chromedp.CSS("#record"), b.world.Bad))
	b.to(`button[value="dry-run"]`)
	b.follow()
	b.see("Dry run", "would be", "tpm.pcr09")
	b.to(`button[value="review"]`)
	b.follow()
	b.see("Changes", "+1", "#\treviewed")
	b.to(`button[value="save"]`)
	b.follow()
	b.see("is saved and in force")
	if text, err := b.world.Policies.Text(t.Context(), "default_cpu"); err != nil || !strings.HasPrefix(text, "#\treviewed\npackage policy") {
		t.Errorf("saved is %.40q, %v", text, err)
	}
}

// storeSecret stores a secret and sees its name only.
func (b *tab) storeSecret() {
	t := b.t
	t.Helper()
	const secret = "typed-by-hand"
	b.section("/console/resources")
	b.to("#path")
	b.key("shop/typed/secret")
	b.to("#text")
	b.key(secret)
	b.to(`form[action="/console/resources"] button.primary`)
	b.follow()
	b.see("shop/typed/secret", "is stored")
	if strings.Contains(ask[string](b, "document.documentElement.outerHTML"), secret) {
		t.Error("the page has the value")
	}
	if infos, err := b.world.Resources.List(t.Context(), "shop/typed", "", 0); err != nil || len(infos) != 1 ||
		infos[0].Versions[0].Size != len(secret) {
		t.Errorf("stored: %+v, %v", infos, err)
	}
}

// TestLive sees a counter move without loading the page again.
func TestLive(t *testing.T) {
	b := open(t)
	b.signIn()
	before := ask[string](b, `document.querySelector("[data-key=attested]").textContent`)
	b.world.Attest()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](fmt.Sprintf(`document.querySelector("[data-key=attested]").textContent !== %q`,
		before))); err != nil {
		t.Fatalf("the counter stays at %s: %v", before, err)
	}
	b.to("#live-pause")
	b.key(kb.Enter)
	b.see("paused")
}

// TestPolicyIsEnforced makes sure that the tests would hear of a page that breaks the Content-Security-Policy.
func TestPolicyIsEnforced(t *testing.T) {
	b := open(t)
	b.signIn()
	if heard := b.heard(); len(heard) > 0 {
		t.Fatalf("the browser complains: %q", heard)
	}
	ask[bool](b, `(() => { const s = document.createElement("style"); s.textContent = "body { color: red }"; document.head.append(s);
		const i = document.createElement("img"); i.src = "https://elsewhere.invalid/x.png"; document.body.append(i); return true; })()`)
	// The browser complains when it likes.
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(patience); !strings.Contains(strings.Join(b.heard(), "\n"), "Content Security Policy"); <-look.C {
		if time.Now().After(end) {
			t.Fatalf("a style and an image of elsewhere were let in; heard: %q", b.heard())
		}
	}
	if ask[string](b, "getComputedStyle(document.body).color") == "rgb(255, 0, 0)" {
		t.Error("the style counts")
	}
}
