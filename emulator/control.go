package emulator

import (
	"encoding/json"
	"net/http"
)

// serveControl answers the endpoints that tests and scripts steer with.
func (e *Emulator) serveControl(w http.ResponseWriter, r *http.Request) {
	// They take no key, so a page of another site, open in the developer's
	// browser, must not reach them.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		apiError(http.StatusForbidden, "not from a page of another site").write(w)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /emulator/stats":
		jsonAnswer(http.StatusOK, e.Stats()).write(w)
		return
	case "POST /emulator/reset":
		e.Reset()
	case "POST /emulator/revoke":
		e.Revoke()
	case "PUT /emulator/fault":
		var f Fault
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		dec.DisallowUnknownFields()
		err := decodeOne(dec, &f)
		if err == nil {
			err = f.Validate()
		}
		if err != nil {
			apiError(http.StatusBadRequest, "not a fault: "+err.Error()).write(w)
			return
		}
		e.SetFault(f)
	case "DELETE /emulator/fault":
		e.SetFault(Fault{})
	default:
		apiError(http.StatusNotFound, "use GET /emulator/stats, POST /emulator/reset, POST /emulator/revoke, PUT or DELETE /emulator/fault").write(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
