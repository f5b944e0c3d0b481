package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWebhookFlags: URLs and secrets come from flags or files, and no error repeats them.
func TestWebhookFlags(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const hidden = "t0p-s3cret"
	long := file("long", strings.Repeat("x", maxWebhookFile+1))
	for _, c := range []struct {
		urls   []string
		secret string
		says   string // empty if it is taken
	}{
		{nil, "", ""},
		{[]string{"https://host/" + hidden, "@" + file("url", "http://other/"+hidden+"\n")}, file("secret", "sixteen bytes or more\n"), ""},
		{nil, file("lonely", hidden), "signs nothing"},
		{[]string{"host/" + hidden}, "", "number 1"},
		{[]string{"@" + filepath.Join(dir, "missing")}, "", "missing: no such file"},
		{[]string{"@" + file("two", hidden+"\n"+hidden)}, "", "must have one line"},
		{[]string{"@" + long}, "", "must have one line"},
		{[]string{"https://host"}, file("short", "short"), "at least 16"},
		{[]string{"https://host"}, file("empty", "\n"), "must have one line"},
	} {
		o := options{webhooks: c.urls, webhookSecretFile: c.secret}
		err := o.parseWebhooks()
		switch {
		case c.says == "" && (err != nil || (o.webhook == nil) != (len(c.urls) == 0)):
			t.Errorf("%v: %v", c.urls, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), hidden)):
			t.Errorf("%v: %v; want %q", c.urls, err, c.says)
		}
	}
}
