package browser

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// TestPages opens every page wide and narrow, light and dark: none scrolls sideways as a whole, and the browser has no complaint.
// With CLOISTER_PICTURES=DIR it keeps a picture of each, to be looked at.
func TestPages(t *testing.T) {
	b := open(t)
	dir := os.Getenv("CLOISTER_PICTURES")
	shot := func(name string, full bool) {
		t.Helper()
		if dir == "" {
			return
		}
		ctx, cancel := context.WithTimeout(b.ctx, patience)
		defer cancel()
		action := chromedp.CaptureScreenshot()
		if full {
			action = chromedp.FullScreenshot(100)
		}
		raw, err := chromedp.Run(ctx, action)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".png"), raw, 0o600)
		}
		if err != nil {
			t.Errorf("picture of %s: %v", name, err)
		}
	}
	b.do(chromedp.Navigate(b.url + "/console/sign-in"))
	shot("signin", false)
	b.signIn()
	pages := map[string]string{
		"overview": "/", "attestations": "attestations", "bad": "decisions/" + b.world.Bad, "good": "decisions/" + b.world.Good,
		"bitten": "decisions/" + b.world.Bitten, "refusals": "refusals", "refused": "decisions/" + b.world.Refused, "resources": "resources",
		"delete": "resources/delete?path=shop/api/token", "policies": "policies", "policy": "policies/attestation/default_cpu",
		"references": "references", "tenants": "tenants", "audit": "audit", "lost": "nowhere",
	}
	for _, scheme := range []string{"light", "dark"} {
		b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}))
		for _, width := range []int64{1280, 390} {
			b.do(chromedp.EmulateViewport(width, 900))
			for name, path := range pages {
				b.do(chromedp.Navigate(b.url + strings.TrimSuffix("/console/"+path, "//")))
				if over := ask[int](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); over > 0 {
					t.Errorf("%s is %d pixels wider than a window of %d", name, over, width)
				}
				if width == 390 {
					name += "-narrow"
				}
				shot(name+"-"+scheme, true)
			}
		}
	}
	b.do(chromedp.EmulateViewport(1280, 900))
	b.tryPolicy(shot)
	for _, complaint := range b.heard() {
		// The page that is not there, and the policy with a fault.
		if !strings.Contains(complaint, "responded with a status of 404") && !strings.Contains(complaint, "responded with a status of 422") {
			t.Errorf("the browser complains: %s", complaint)
		}
	}
}

// tryPolicy looks at the editor with what it says after a review, a dry run and a fault.
func (b *tab) tryPolicy(shot func(string, bool)) {
	b.t.Helper()
	for _, one := range []struct{ name, action, script, says string }{
		{"dry-run", "dry-run", `t => t.replace("input.tpm.pcr07 in", "input.tpm.pcr00 in")`, "would be"},
		{"review", "review", `t => t.replace("default hardware := 97", "default hardware := 96\n# new")`, "Save and put in force"},
		{"fault", "review", `t => t.replace("default hardware := 97", "default hardware := ")`, "What the compiler says"},
	} {
		b.do(chromedp.Navigate(b.url + "/console/policies/attestation/default_cpu?record=" + b.world.Bad))
		ask[bool](b, `(() => { const e = document.getElementById("text"); e.value = (`+one.script+`)(e.value); return true; })()`)
		b.to(`button[value="` + one.action + `"]`)
		b.follow()
		b.see(one.says)
		shot(one.name, true)
	}
}
