"""The part of the panel that shows how the experts came to the latest mask; computed only while it is open."""

import html

import qt
from slicer.i18n import tr as _

PICTURE_SIDE = 300  # pixels


class ExpertPanel:
    """Mixed into the module's widget."""

    def connectExpertWidgets(self):
        self.ui.expertsButton.connect("contentsCollapsed(bool)", lambda collapsed: self.refreshExperts())

    def refreshExperts(self):
        """Bring the section up to date with the latest answer, if it is open. The panel's timer calls this, too."""
        self.ui.expertLabel.setText(self.logic.expertSummary)
        if not self.ui.expertsButton.collapsed and self.logic.expertsToShow():
            self.logic.startExpertView(self.showExperts, PICTURE_SIDE)

    def showExperts(self, view, png):
        """Fill the table and the picture."""
        layers = [_("Layer {number}").format(number=number + 1) for number in range(len(view.routing))]
        rows = [[_("Token"), _("Sure"), *layers]]
        for token, probability in enumerate(view.token_probabilities):
            experts = [_("expert {number}, {share}").format(number=int(routing[token]) + 1,
                                                            share=f"{float(gates[token][routing[token]]):.0%}")
                       for routing, gates in zip(view.routing, view.gate_probabilities)]
            mark = " ★" if token == view.selected else ""
            rows.append([f"{token + 1}{mark}", f"{float(probability):.0%}", *experts])
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}&nbsp;&nbsp;</td>" for cell in row) + "</tr>"
                        for row in rows)
        kind = ""
        if view.looks_like:
            name, share = view.looks_like
            kind = html.escape(_("Looks like {name} ({share}).").format(name=name, share=f"{share:.0%}"))
        self.ui.expertTableLabel.setText(f"{kind}<table>{cells}</table>")
        pixmap = qt.QPixmap()
        pixmap.loadFromData(qt.QByteArray(png))
        self.ui.attentionLabel.setPixmap(pixmap)

    def clearExperts(self):
        """Show nothing, e.g. when the scene with the image is closed."""
        self.ui.expertLabel.setText(_("No answer yet."))
        self.ui.expertTableLabel.setText("")
        self.ui.attentionLabel.setPixmap(qt.QPixmap())
