package viewersession

import (
	"encoding/base64"
	"encoding/json"
)

// testJWT returns a token with these claims. Nobody here can check its signature.
func testJWT(claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(payload) + "." + encode([]byte("signature"))
}
