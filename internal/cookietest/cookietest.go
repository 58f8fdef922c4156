// Package cookietest has models of how families of servers read cookies, made
// after what they were seen to do, and cookies such as browsers send.
package cookietest

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// parsers are the models. Each returns the names of the cookies that
// have a value, as the app sees them.
var parsers = map[string]func(line string) []string{
	"RFC 6265": func(line string) []string {
		return pairNames(strings.Split(line, ";"), func(name string) string { return strings.Trim(name, " \t") })
	},
	"Node, Latin-1 white space": func(line string) []string {
		return pairNames(strings.Split(line, ";"), func(name string) string {
			return strings.Trim(toRunes(name), " \t\v\f\r\n\u00a0\ufeff")
		})
	},
	"UTF-8 white space": func(line string) []string {
		return pairNames(strings.Split(line, ";"), strings.TrimSpace)
	},
	"Latin-1 white space": func(line string) []string {
		return pairNames(strings.Split(line, ";"), func(name string) string {
			return strings.Trim(toRunes(name), " \t\v\f\r\n\x1c\x1d\x1e\x1f\u0085\u00a0")
		})
	},
	"PHP": func(line string) []string {
		return pairNames(strings.Split(line, ";"), func(name string) string { return PHPName(strings.TrimLeft(name, " \t\r\n\v\f")) })
	},
	"older PHP": func(line string) []string {
		return pairNames(strings.Split(line, ";"), func(name string) string {
			return PHPName(strings.TrimLeft(PercentDecode(strings.ReplaceAll(strings.TrimLeft(name, " \t\r\n\v\f"), "+", " ")), " "))
		})
	},
	"older Rack": func(line string) []string {
		return pairNames(regexp.MustCompile(`[;,] *`).Split(line, -1), func(name string) string {
			return strings.TrimSpace(PercentDecode(strings.ReplaceAll(name, "+", " ")))
		})
	},
	"Perl's CGI": func(line string) []string {
		return pairNames(regexp.MustCompile(`[;,] ?`).Split(line, -1), func(name string) string { return perlDecode(strings.TrimSpace(name)) })
	},
	"Python's SimpleCookie": func(line string) []string { return scanCookies(simpleCookie, line, true) },
	"WebOb":                 func(line string) []string { return scanCookies(webOb, line, false) },
	"Mojolicious":           func(line string) []string { return scanCookies(mojolicious, line, false) },
	"Servlet, RFC 2109": func(line string) []string {
		return pairNames(splitOutsideQuotes(line), func(name string) string {
			if name = strings.Trim(name, " \t"); strings.HasPrefix(name, `"`) {
				name = strings.ReplaceAll(name, `\`, "")
			}
			return strings.ToLower(strings.Trim(name, `"`))
		})
	},
	"Servlet, without quotes": func(line string) []string {
		return pairNames(strings.FieldsFunc(line, func(r rune) bool { return r == ';' || r == ',' }), func(name string) string {
			return strings.ToLower(strings.Trim(name, " \t\""))
		})
	},
	"white space ends a pair": func(line string) []string {
		return pairNames(strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("; \t,", r) }), strings.ToLower)
	},
}

// pairNames returns the names of those pairs that have a value.
func pairNames(pairs []string, name func(string) string) (names []string) {
	for _, pair := range pairs {
		if key, _, ok := strings.Cut(pair, "="); ok {
			names = append(names, name(key))
		}
	}
	return names
}

var (
	simpleCookie = regexp.MustCompile("^\\s*([\\w!#%&'~`><@,:/$*+\\-.^|)(?}{=]+?)(\\s*=\\s*(?:\"(?:[^\\\\\"]|\\\\.)*\"|[\\w!#%&'~`><@,:/$*+\\-.^|)(?}{=\\[\\]]*))?\\s*(?:\\s+|;|$)")
	webOb        = regexp.MustCompile("([\\w~!@#$%^&*()+=`.?|:/{}<>'-]+?)(\\s*=\\s*(?:\"(?:\\\\\"|.)*?\"|\\w{3},\\s[\\w-]{9,11}\\s[\\d:]{8}\\sGMT|(?:[\\w~!@#$%^&*()+=`.?|:/{}<>'-]|\\\\(?:[0-3][0-7][0-7]|.))*))")
	mojolicious  = regexp.MustCompile(`^[,;\s]*([^=;, ]+)\s*(=\s*(?:"(?:\\\\|\\"|[^"])*"|[^;,]*))?`)
)

// scanCookies reads one cookie after the other, until there is none.
func scanCookies(cookie *regexp.Regexp, line string, stop bool) (names []string) {
	text := toRunes(line) // bytes are Latin-1 there
	for text != "" {
		found := cookie.FindStringSubmatchIndex(text)
		if found == nil || found[1] == 0 {
			break
		}
		if found[4] >= 0 {
			names = append(names, text[found[2]:found[3]])
		} else if stop {
			break
		}
		text = text[found[1]:]
	}
	return names
}

func toRunes(line string) string {
	runes := make([]rune, len(line))
	for i := range len(line) {
		runes[i] = rune(line[i])
	}
	return string(runes)
}

func splitOutsideQuotes(line string) (pairs []string) {
	quoted, start := false, 0
	for i := range len(line) {
		switch {
		case line[i] == '"' && (i == 0 || line[i-1] != '\\'):
			quoted = !quoted
		case !quoted && (line[i] == ';' || line[i] == ','):
			pairs = append(pairs, line[start:i])
			start = i + 1
		}
	}
	return append(pairs, line[start:])
}

var perlEscape = regexp.MustCompile(`%(?:([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))`)

func perlDecode(name string) string {
	return perlEscape.ReplaceAllStringFunc(strings.ReplaceAll(name, "+", " "), func(escape string) string {
		c, _ := strconv.ParseUint(strings.TrimPrefix(escape[1:], "u"), 16, 32)
		return string(rune(c)) //nolint:gosec // four digits
	})
}

// Finds returns the first family that finds a cookie of this name in the
// lines, or in what they are joined to.
func Finds(name string, lines []string) string {
	folded := strings.ToLower(PHPName(name))
	for _, joined := range append([]string{strings.Join(lines, "; "), strings.Join(lines, ", "), strings.Join(lines, ",")}, lines...) {
		for _, family := range slices.Sorted(maps.Keys(parsers)) {
			for _, found := range parsers[family](joined) {
				if strings.EqualFold(found, name) || family == "PHP" && strings.ToLower(found) == folded || family == "older PHP" && strings.ToLower(found) == folded {
					return family
				}
			}
		}
	}
	return ""
}

// PHPName is what PHP makes of a cookie's name.
func PHPName(name string) string {
	name, _, _ = strings.Cut(name, "\x00")
	if open := strings.IndexByte(name, '['); open > 0 && strings.Contains(name[open:], "]") {
		name = name[:open]
	}
	return strings.NewReplacer(".", "_", " ", "_", "[", "_").Replace(name)
}

// PercentDecode decodes percent escapes and leaves malformed ones as they are.
func PercentDecode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(c)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Honest are such as browsers send: of analytics, consent tools, sessions
// of frameworks, and whatever else people put into cookies.
var Honest = []string{
	"_ga=GA1.2.1234567890.1700000000", "_gid=GA1.2.987654321.1700000000", "_ga_ABC123DEF4=GS1.1.1700000000.3.1.1700000100.0.0.0", "_fbp=fb.1.1700000000000.123456789",
	"_gcl_au=1.1.123456789.1700000000", "_hjSessionUser_123456=eyJpZCI6ImFiYyIsImNyZWF0ZWQiOjE3MDAwMDB9", "_uetsid=abcdef0123456789abcdef", "_clck=1abc|2|fh0|0|1400", "_pk_id.1.1fff=abcdef.1700000000.",
	"amplitude_id_abc=eyJkZXZpY2VJZCI6IjEyMyJ9", "mp_abc_mixpanel=%7B%22distinct_id%22%3A%20%22abc%22%7D", "ajs_anonymous_id=%22abc-def%22", `optimizelyEndUserId=oeu1700000000000r0.123`, "intercom-id-abc=1234-5678",
	"OptanonConsent=isGpcEnabled=0&datestamp=Mon+Nov+27+2026+10%3A00%3A00+GMT%2B0100&version=202310.1.0&groups=C0001%3A1%2CC0002%3A0", "OptanonAlertBoxClosed=2026-11-27T09:00:00.000Z",
	"CookieConsent={stamp:%27abc/def==%27%2Cnecessary:true%2Cpreferences:false%2Cver:1}", `cookieyes-consent=consentid:abc,consent:yes,action:yes,necessary:yes,functional:no`, "euconsent-v2=CPabcdefAAAAAAAA.YAAAAAAAAAAA", "didomi_token=eyJ1c2VyX2lkIjoiMThhIn0=",
	"JSESSIONID=0A1B2C3D4E5F60718293A4B5C6D7E8F9.node1", "PHPSESSID=abcdefghijklmnopqrstuvwxyz", "connect.sid=s%3Aabc.def%2Fghi%2Bjkl", "sessionid=abcdefghij0123456789", "csrftoken=AbCdEf0123456789", "laravel_session=eyJpdiI6Ik1rPT0iLCJ2YWx1ZSI6IngifQ%3D%3D",
	"XSRF-TOKEN=eyJpdiI6IngifQ==", "_rails_session=abc--def", "rack.session=BAh7CEkiD3Nlc3Npb25faWQGOgZFVEkiRTFh", "ASP.NET_SessionId=abcdefghijklmnop", ".AspNetCore.Cookies=CfDJ8Abc-Def_Ghi", "__RequestVerificationToken=abc123", "wordpress_logged_in_abc=admin|1700000000|abc|def",
	"wp-settings-1=libraryContent%3Dbrowse%26editor%3Dtinymce", "__Secure-next-auth.session-token=eyJhbGciOiJkaXIifQ..abc.def.ghi", "__Host-next-auth.csrf-token=abc%7Cdef", "auth0.is.authenticated=true", "cf_clearance=abc.def-1700000000-0-1-abc.def.ghi", "__cf_bm=abc-1700000000-0-abc/def+ghi=",
	"AWSALB=abc/def+ghi==", "datadome=abc~def_ghi", "incap_ses_1=abc==", "visid_incap_1=abc/def", "NID=511=abc-def", "SIDCC=abc",
	// Values that are not RFC 6265's, and come all the same.
	"teams=red vs blue", "name=John Smith", "title=Q&A: what's new, and why?", `quoted="a b c"`, `escaped="say \"hi\""`, "list=a,b,c", "list=a,vs,b", `json={"theme":"dark","sizes":[1,2,3],"name":"x y"}`,
	`array=["vs","my_vs"]`, "utf8=café", "utf8vs=cafévs", "latin=caf\xe9", "emoji=\U0001F600", "cjk=文書", "open=\"unclosed", "back=C:\\temp\\vs", "tilde=~!@#$%^&*()", "next=%2F%3Fvs%3D1", "return=%2Fa%3Fmy_vs%3D2%26__Host-viewer%3D3%26viewer_session%3D4", "empty=", "nameless", "=novalue", "spaces=  a  ", "percent=100%", "plus=a+b",
	"date=Mon, 27 Nov 2026 10:00:00 GMT", "url=https://example.com/?a=1&b=2#c", "path=/a/b;c", "versus=1", "envs=prod", "canvas=on", "my_vs2=1", "my_vsx=y", "x-vs=1", "vs1=1", "avs=1", "lvs=a b", "__Host-viewer2=1", "viewer=1", "Host-viewer=1", "vs-code=1", "vs.code=1",
}
