/* Search in a site that is opened from a folder: browsers refuse workers there, so an iframe takes the worker's place.
   Material's plugin `offline` would load such a shim from a server; it takes this one for its own by the name. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const script = (address) => `<script src="${address}"><\/script>`;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<!doctype html><script>
        var postMessage = (data) => parent.postMessage(data, "*");
        var importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((loaded) => {
          const script = document.createElement("script");
          script.src = url;
          script.onload = loaded;
          document.body.appendChild(script);
        })), Promise.resolve());
      <\/script><body>${script(new URL(url, document.baseURI))}`;
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
      this.ready = new Promise((loaded) => { this.frame.onload = loaded; });
      document.body.appendChild(this.frame);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.postMessage(data, "*"));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
