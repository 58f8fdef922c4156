package strip

import (
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/cookietest"
)

// The models find what they are to look for, so that a test with them can fail.
func TestCookieParserModels(t *testing.T) {
	for line, want := range map[string]string{
		"vs=EVIL": "Latin-1 white space", "a=1; vs=EVIL": "Latin-1 white space", `a="1"vs=EVIL`: "Mojolicious", `\vs=EVIL`: "WebOb", "[vs=EVIL": "WebOb",
		`x]vs=EVIL`: "WebOb", `a=x"vs=EVIL`: "WebOb", "%u0076s=EVIL": "Perl's CGI", "%76s=EVIL": "Perl's CGI", "a=1,vs=EVIL": "Mojolicious",
		"a=1 vs=EVIL": "Python's SimpleCookie", "\x85vs=EVIL": "Latin-1 white space", "\xe2\x80\x83vs=EVIL": "Perl's CGI",
		"vs[x]=EVIL": "PHP", "%76s[]=EVIL": "older PHP", "VS=EVIL": "Latin-1 white space", `"v\s"=EVIL`: "Servlet, RFC 2109", "a=x[vs=EVIL": "WebOb", "a=Mon, 27-Nov-2026 10:00:00 GMTvs=EVIL": "WebOb", `a="1; b="vs=EVIL"`: "Mojolicious",
		"a=vs": "", "teams=red vs blue; x=1": "", "list=a,vs,b": "", "utf=caf\xc3\xa9vs": "", "envs=1": "", "a=vs=1": "", "a=/x?vs=1": "",
	} {
		if got := cookietest.Finds("vs", []string{line}); got != want {
			t.Errorf("%q: %q finds it, want %q", line, got, want)
		}
	}
}

var testCookieNames = []string{"vs", "my_vs", "__Host-viewer", "v", "a.b"}

// Names and separators at random: whatever is left, no family finds ours in it,
// and it is left alone the second time.
func TestNoParserFindsOurCookie(t *testing.T) {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	random := rand.New(rand.NewPCG(seed, 0))
	for _, name := range testCookieNames {
		encoded := strings.NewReplacer("v", "%76", "_", "%5f", "s", "%u0073").Replace(name)
		pieces := []string{
			name, name, name, name + "=EVIL", name + "=EVIL", strings.ToUpper(name), encoded, strings.Replace(name, "_", ".", 1), strings.Replace(name, "_", " ", 1), name + "[x]", name + "[", `"` + name[:1] + `\` + name[1:] + `"`,
			"=", "=", "=", "EVIL", ";", ";", "; ", ", ", ",", " ", "\t", `"`, `"`, `\`, `'`, "[", "]", "{", "}", "(", ")", "<", ">", "@", ":", "/", "?", "|", "&", "+", "%20", "%3D", "%3B", "%00", "%25", "%2576", "%",
			"a", "a=1", "keep=1", "a=Mon, 27-Nov-2026 10:00:00 GMT", `b="` + name + `=EVIL"`, `a="1`, `a=\`, `q="x y"`, "\x80", "\x85", "\xa0", "\xff", "\xc2\xa0", "\xe2\x80\x83", "\xef\xbb\xbf", "$Version=1", "$Path", "-", "_", ".", "x",
		}
		text := func() string {
			var b strings.Builder
			for range random.IntN(9) {
				b.WriteString(pieces[random.IntN(len(pieces))])
			}
			return b.String()
		}
		found := make(map[string]int)
		for range 8_000 {
			lines := []string{text()}
			if random.IntN(2) == 0 {
				lines = append(lines, text())
			}
			before := cookietest.Finds(name, lines)
			if before != "" {
				found[before]++
			}
			left := stripped(name, slices.Clone(lines)...)
			if family := cookietest.Finds(name, left); family != "" {
				t.Fatalf("seed %d: %s finds %s in %q, left of %q", seed, family, name, left, lines)
			}
			if again := stripped(name, slices.Clone(left)...); !reflect.DeepEqual(again, left) {
				t.Fatalf("seed %d: %q becomes %q", seed, left, again)
			}
		}
		if len(found) < 5 {
			t.Errorf("%s: only %v found it before", name, found)
		}
	}
}

// No honest cookie is changed, unless NAME= occurs in it: neither alone nor
// among others.
func TestHonestCookiesStayAsTheyAre(t *testing.T) {
	lines := append([]string{strings.Join(cookietest.Honest, "; "), strings.Join(cookietest.Honest, ";")}, cookietest.Honest...)
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		random.Shuffle(len(cookietest.Honest), func(i, j int) {
			cookietest.Honest[i], cookietest.Honest[j] = cookietest.Honest[j], cookietest.Honest[i]
		})
		lines = append(lines, strings.Join(cookietest.Honest[:1+random.IntN(8)], "; "))
	}
	for _, name := range []string{"vs", "my_vs", "__Host-viewer", "viewer_session"} {
		for _, line := range lines {
			if got := stripped(name, line); len(got) != 1 || got[0] != line {
				t.Errorf("%s: %q becomes %q", name, line, got)
			}
			// On lines of their own, ours takes nothing with it.
			if got := stripped(name, line, name+"=EVIL"); len(got) != 1 || got[0] != line {
				t.Errorf("%s, ours beside: %q becomes %q", name, line, got)
			}
		}
	}
}

// runs are what lines can be full of.
var runs = []string{
	" ", "\t", "\x80", "\xff", "\u00a0", "+", `\`, `"`, "%", "%2", "%25", "25", "%u", "%u0020", "%20", "%00", "vs", "vs ", "vs\t", "vs\x80", `vs\`, `vs"`, "v", "V", `v\`, "v%25", "vs%25", "v25",
	";", "; ", "vs;", ",vs", "[", "]vs[", "[vs", "=", "a=", "a=[", "=vs", "a=1; ", "vs+", "%25vs ", "a=vs; ", "a=vs=",
}

// Whatever a line is full of, 16 times as much of it takes about 16 times as
// long, and not 256 times. A busy machine makes one measurement look worse than
// it is, but not each of many.
func TestLookForCookiesIsLinear(t *testing.T) {
	took := func(line string) time.Duration {
		start := time.Now()
		MayHoldCookie(line, "vs")
		rebuildCookies(line, "vs")
		return time.Since(start)
	}
	for _, run := range runs {
		for _, prefix := range []string{"", "a=", "vs", "%25"} {
			line := prefix + strings.Repeat(run, 32<<10/len(run))
			short, long := time.Hour, time.Hour
			for attempt := 0; ; attempt++ {
				short, long = min(short, took(line[:len(line)/16])), min(long, took(line))
				if long < 64*short {
					break
				}
				if attempt == 50 {
					t.Fatalf("%q behind %q: %s for 2 KiB, %s for 32 KiB", run, prefix, short, long)
				}
			}
		}
	}
}

func TestLookForCookiesAllocatesNothing(t *testing.T) {
	header := http.Header{"Cookie": {strings.Join(cookietest.Honest, "; ")}}
	if got := testing.AllocsPerRun(100, func() { stripCookie(header, "viewer_session") }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkLookForCookies(b *testing.B) {
	lines := map[string]string{"1 KiB, honest": strings.Join(cookietest.Honest, "; ")[:1<<10]}
	for _, run := range []string{" ", "\x80", "vs\x80", "%25", "vs"} {
		lines[strconv.Quote(run)+", 14 KiB"] = strings.Repeat(run, 14<<10/len(run))
	}
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				if MayHoldCookie(lines[name], "vs") {
					rebuildCookies(lines[name], "vs")
				}
			}
		})
	}
}

func FuzzLookForCookies(f *testing.F) {
	for _, run := range runs {
		f.Add(run, "a=1; ", "; vs=EVIL", uint16(1000))
	}
	f.Fuzz(func(t *testing.T, run, before, after string, times uint16) {
		if len(run) > 64 {
			return
		}
		line := before + strings.Repeat(run, int(times)) + after
		start := time.Now()
		left := stripped("vs", line)
		if took := time.Since(start); took > time.Second {
			t.Errorf("%d bytes take %s", len(line), took)
		}
		for _, line := range left {
			if MayHoldCookie(line, "vs") && rebuildCookies(line, "vs") != line {
				t.Errorf("%.100q is left of %.100q", line, line)
			}
		}
	})
}
