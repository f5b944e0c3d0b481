package disaster

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

const scratch = `# A page

## You see

1. First:

   ` + "```" + `sh
   export STORE=s3://my-bucket/x
   export NAME="$(basename $STORE)"
   greeting=hello
   cd /
   ` + "```" + `

## Do this

### Way one

` + "```" + `sh
echo "$NAME ${greeting:-gone} in $PWD"
echo "2026-01-30T01:02:03Z-000007 has 17 keys, 3 min, took 8.5s"
` + "```" + `
` + "```" + `console
store gone in /
…
2026-11-11T11:11:11Z-000000 has 9 keys, …, took 250ms
` + "```" + `

` + "```" + `sh on-each-master
systemctl is-active etcd-manager || true
echo /var/lib/etcd-manager
` + "```" + `
`

func TestParse(t *testing.T) {
	p, err := parsePage("scratch.md", scratch)
	must(t, err)
	if p.title != "A page" || len(p.blocks) != 4 {
		t.Fatalf("title %q, %d blocks", p.title, len(p.blocks))
	}
	if b := p.blocks[0]; b.section != "You see" || b.lang != "sh" || !strings.HasPrefix(b.text, "export STORE") || b.line != 7 {
		t.Errorf("first block: %+v", b)
	}
	if b := p.blocks[3]; b.section != "Do this / Way one" || b.arg != "on-each-master" {
		t.Errorf("last block: %+v", b)
	}
	if n := len(p.in("Way one")); n != 3 {
		t.Errorf("%d blocks in the way, want 3", n)
	}
	for _, bad := range []string{"```sh\nno end", "  ```sh\nless indented\n  ```"} {
		if _, err := parsePage("bad.md", bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, tc := range []struct {
		want, got string
		inside    bool
		missing   string
	}{
		{"a 1\nb 2", "a 100\nx\nb 7\n", false, ""},
		{"b 2\na 1", "a 100\nx\nb 7\n", false, ""},
		{"a 1\na 2", "a 100\nx\n", false, "a 2"},
		{"a 1\na 2", "a 100\nx\n", true, ""},
		{"b 2\na 1", "a 100\nx\nb 7\n", true, ""},
		{"done after 12s", "done after 1m3.2s", false, ""},
		{"done after 12s", "not done after 12s", false, "done after 12s"},
		{"done after 12s", "W1122 not done after 12s, again", true, ""},
		{"size 1.2 MiB", "size 900 B", false, ""},
		{"size 1.2 MiB", "size unknown", false, "size 1.2 MiB"},
		{"in s3://my-bucket/main, good", "in /tmp/x/y, good", false, ""},
		{"… good", "whatever is good", false, ""},
		{"NAME  STATE", "NAME      STATE  ", false, ""},
		{"cluster ABCDEFGH23456777 here", "cluster ZZZZFGH234567772 here", false, ""},
		{"failed", "done", false, "failed"},
	} {
		if got := missing(tc.want, tc.got, tc.inside); got != tc.missing {
			t.Errorf("missing(%q, %q) = %q, want %q", tc.want, tc.got, got, tc.missing)
		}
	}
}

func TestDesk(t *testing.T) {
	p, err := parsePage("scratch.md", scratch)
	must(t, err)
	d := newDesk(t, harness.New(t, harness.Options{Nodes: 2}))
	d.follow(p, p.in("You see"))
	d.follow(p, p.in("Way one"))
	if want := "inactive\n" + d.c.Nodes[0].DataDir + "\ninactive\n" + d.c.Nodes[1].DataDir + "\n"; d.said != want {
		t.Errorf("the masters said %q, want %q", d.said, want)
	}
}
