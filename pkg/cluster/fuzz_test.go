package cluster

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzSetting: the form in which etcd takes a setting is one that is read as the same.
func FuzzSetting(f *testing.F) {
	for _, v := range []string{"8GiB", "100ms", "10000", "30m", "revision", "http://0.0.0.0:8081,http://[::1]:9", strings.Repeat("\x1b", 9000)} {
		for i := range SettingNames() {
			f.Add(uint8(i), v)
		}
	}
	f.Fuzz(func(t *testing.T, i uint8, value string) {
		name := SettingNames()[int(i)%len(SettingNames())]
		testutil.Untrusted(t, len(value), testutil.Usual, func() error {
			once, err := ParseSetting(name, value)
			if err != nil {
				return err
			}
			if twice, err := ParseSetting(name, once); err != nil || twice != once {
				t.Errorf("%s=%q became %q, and that %q: %v", name, value, once, twice, err)
			}
			return Settings{name: once}.Validate()
		})
	})
}

func FuzzVersion(f *testing.F) {
	f.Add("v3.6.16", "3.5.0-rc.1")
	f.Add(strings.Repeat("3", 9000), "\x1b")
	f.Fuzz(func(t *testing.T, a, b string) {
		testutil.Untrusted(t, len(a)+len(b), testutil.Usual, func() error {
			v, err := ParseVersion(a)
			if err != nil {
				return err
			}
			again, err := ParseVersion(v.String())
			if err != nil || again != v {
				t.Errorf("%q became %+v, and that %+v: %v", a, v, again, err)
			}
			w, err := ParseVersion(b)
			if err != nil {
				return err
			}
			if v.Compare(w) != -w.Compare(v) || v.Compare(v) != 0 {
				t.Errorf("%s and %s: %d, %d", v, w, v.Compare(w), w.Compare(v))
			}
			NearestVersion(a, []string{b, a})
			return nil
		})
	})
}

func FuzzShown(f *testing.F) {
	f.Add("a\x1b[31m\xff\u202e", 5)
	f.Fuzz(func(t *testing.T, s string, most int) {
		most = max(0, most%1000)
		once := Shown(s, most)
		testutil.Untrusted(t, len(s), testutil.Usual, func() error { return shownError(once) })
		if len(once) > 10*most+len("…") {
			t.Errorf("%d bytes of at most %d", len(once), most)
		}
	})
}

type shownError string

func (e shownError) Error() string { return "shown: " + string(e) }
